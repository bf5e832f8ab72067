//! Properties of the core that want a certain order of events; everything else is the simulation's.

mod failover;
mod hand_over;
mod lag;
mod matching;
mod owed;
mod repair;
mod rig;
mod tracking;
mod verify;
