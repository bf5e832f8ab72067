//! Properties of the core that want a certain order of events; everything else is the simulation's.

mod rig;
mod verify;
