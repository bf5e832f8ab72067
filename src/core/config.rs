//! What a core is told when it is made and by its administrator.

use super::geometry::Geometry;
use super::layout::Layout;
use super::leg::LegId;
use super::time::Span;

/// What a device is made with. Everything here is fixed while the core lives, but for what a `set_*` changes.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Size and units.
    pub geometry: Geometry,
    /// Bytes of a region, a power of two; of a real device [`Geometry::region`].
    pub region: u64,
    /// How long a region stays active after its last write.
    pub linger: Span,
    /// Where buffers lie.
    pub layout: Layout,
    /// Bytes of payloads that may wait for the secondary.
    pub pool_bytes: u64,
    /// Age of the oldest guest request that waits for the secondary alone, at which the secondary is behind. Does not
    /// apply in `async`, where it is 0.
    pub stall_budget: Span,
    /// Age of the oldest operation on the secondary at which it is behind.
    pub leg_timeout: Span,
    /// Whether a leg that is behind catches up by itself.
    pub catch_up: bool,
    /// Most bytes a secondary may lag; 0: the pool decides.
    pub lag_bytes: u64,
    /// How long an extent is not written before it is hashed.
    pub quiet: Span,
    /// How many generations one record makes available: by how much [`Record::opened`](super::record::Record::opened)
    /// raised the ceiling, and by how much it is raised when half of them are used. At least four times the depth.
    pub generations: u64,
}

/// How long a region stays active after its last write, unless a test needs less.
pub const LINGER: Span = Span::from_secs(10);

/// How long guest requests wait for a record that cannot be made durable (a leg's failure, or generations), from the moment
/// the record is wanted; then they fail, and whatever comes to wait for it fails at once, until a record is durable. It
/// is also how long a switch, a change of protocol and a stop wait for theirs.
pub const RECORD_BUDGET: Span = Span::from_secs(10);

/// What a leg can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegTraits {
    /// Whether a range can be made to read as zeroes without writing it.
    pub punches: bool,
}

/// How an attached leg is made equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyMode {
    /// Write everything: the leg's content is not worth reading.
    Blind,
    /// Read both legs, write only blocks that differ.
    Compare,
    /// Copy only what is dirty since the leg was detached; somebody vouches that nothing else wrote to it.
    Dirty,
}

/// What is known of a disk that is to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comes {
    /// It is the leg's, and holds what it held when it was let go: its signature table says what that is.
    Known,
    /// It is the leg's, and may hold something else.
    Doubtful,
    /// It is another: what was suspect was so of the one before.
    Another,
}

/// What a verify is to do about what differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Tell it.
    No,
    /// Mend what is proven wrong, on either leg.
    Proven,
    /// Mend that, and where nothing is proven, what the other leg holds, from this one.
    From(LegId),
}

/// Why a verb was refused; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is a second leg already.
    #[error("the device has two legs already")]
    AlreadyAttached,
    /// There is no such leg.
    #[error("no such leg is attached")]
    NoSuchLeg,
    /// The leg is the one the guest is served from.
    #[error("this leg is the primary: switch first")]
    IsPrimary,
    /// The secondary is not in sync.
    #[error("the secondary is not in sync")]
    NotInSync,
    /// The legs differ somewhere, and nobody has decided which is right.
    #[error("the legs differ in places that are suspect")]
    Suspect,
    /// Another walk, switch or stop is under way.
    #[error("another operation is under way")]
    Busy,
    /// The device is being stopped.
    #[error("the device is stopping")]
    Stopping,
    /// An operation of this leg has not ended since it was given up on.
    #[error("leg {0} has not answered")]
    Unanswered(LegId),
    /// The value is out of range.
    #[error("the value is out of range")]
    Invalid,
}
