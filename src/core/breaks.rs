//! Deliberate faults of the core, to prove that the simulation finds them.
//!
//! A place in the core that upholds an ordering asks [`on`] whether it is to forget it. Without the feature `breaks`
//! the answer is the constant `false` and nothing of this remains in the program; with it a test chooses one fault per
//! thread by `arm`. No product is ever built with the feature.

/// An ordering that the core can be told to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// A write or barrier is acknowledged without the secondary that counts for it.
    AckBeforeSecondary,
    /// F is taken when a flush of the secondary completes instead of when it is issued.
    FlushedAtCompletion,
    /// Writes of an epoch start on the secondary before the epoch before it is durable there.
    EpochOrder,
    /// A FUA write does not end its epoch.
    FuaEpoch,
    /// A resync copy is not ordered against guest writes.
    CopyOrder,
    /// A write that covers a grain in part clears its dirty bit.
    PartialGrainClears,
    /// A barrier is acknowledged before the demotion it relies on is durable.
    DemotionUndurable,
    /// A payload that the secondary still needs is not kept: the guest gets its buffer back.
    PayloadNotKept,
    /// Roles change before the secondary is drained.
    SwitchUndrained,
    /// A write that failed on a leg leaves its grains clean.
    FailedWriteClean,
    /// Overlapping writes start on the secondary in any order.
    OverlapOrder,
    /// Writes in flight when a resync starts are not taken along.
    ResyncForgetsInFlight,
    /// FUA is lost on the way to the primary.
    FuaDropped,
    /// A discard or zeroing reaches the primary alone.
    ZeroOneLeg,
    /// What waits for a record that cannot be written waits for ever.
    HeldForEver,
    /// What waits for a record that cannot be written is acknowledged in the end instead of failed.
    UnrecordedAcknowledged,
    /// A change of health is told before the record says so.
    HealthBeforeRecord,
    /// Generations are used above the ceiling that is durable.
    GenerationCeiling,
    /// An operation of the secondary may take as long as it likes.
    LegClock,
    /// A write does not wait for the marks of its regions.
    MarkNotAwaited,
    /// A region is left as if the primary had been flushed.
    PrimaryLeftUnflushed,
    /// A region is left as if the secondary that is followed had been flushed.
    SecondaryLeftUnflushed,
    /// The pieces that a resync has taken and not finished are not saved as dirty.
    SavedWithoutPieces,
    /// What is not durable on the secondary is not saved as dirty.
    SavedWithoutUnflushed,
    /// Marks are cleared although the dirty map was not saved.
    ClearedUnsaved,
    /// Marks are cleared before the dirty map is saved.
    ClearedBeforeSaved,
    /// Marks that could not be written count as written.
    MarkFailureIgnored,
    /// A dirty map that could not be saved counts as saved.
    SaveFailureIgnored,
    /// The record says tracked although the primary failed a flush.
    TrackedAfterFailedFlush,
    /// The record says tracked although a leg was attached of which nothing is known.
    TrackedAfterAttach,
    /// What the primary failed is answered with success before its demotion is durable.
    AnsweredBeforeDemoted,
    /// The guest is moved to a secondary that has not got everything: it is being copied to.
    MovedToIncomplete,
    /// The guest is moved before what is pending has landed on the secondary.
    MovedUndrained,
    /// What was read from the secondary is written to the primary whatever was written there meanwhile.
    RewriteOvertakes,
    /// A switch records the old primary as in sync although it failed a flush.
    DoubtForgotten,
    /// What the primary failed is copied from it to the secondary, which has it.
    CopiedFromDoubted,
    /// A failover that was given up is not tried again when a record is durable.
    FailoverForgotten,
    /// A failover holds the guest for as long as it takes.
    HeldByFailover,
    /// What a leg may have lost in a flush that failed is compared when the leg is made equal.
    DoubtedCompared,
    /// That a leg failed a flush is not known after a restart.
    DoubtUnrecorded,
    /// An error of the host's is taken for one of the disk.
    HostTakenForDisk,
    /// An extent that was written since it was read is signed.
    SpoiledSigned,
    /// What the secondary holds is trusted although it was written.
    SecondaryTrusted,
    /// What a leg shows after a failed flush is signed, and trusted.
    DoubtedSigned,
    /// What is stale in the tables is not forgotten before the record says clean.
    StaleKept,
    /// What the tables say to be equal is not copied, although it was written since they were asked.
    MatchedOutdated,
    /// What the secondary holds is recognised, although it was written since it was read.
    RecognisedOutdated,
    /// What the table says is taken for the digest, although it was written since it was asked.
    RecalledOutdated,
    /// A verify ends before what it found suspect is recorded.
    SuspectUnrecorded,
    /// What is suspect is copied over by a resync.
    SuspectCopied,
    /// A leg is judged by what was read, or noted, before a write.
    JudgedOutdated,
    /// A leg is proven wrong by what was read back from the other alone.
    AccusedByOther,
    /// Something is mended before it is known, durably, to be suspect.
    MendedUnsuspected,
    /// What was mended is suspect no more before it is flushed.
    MendedUnflushed,
    /// What a guest's write decides is suspect no more before it is flushed.
    DecidedUnflushed,
}

impl Break {
    /// All of them.
    pub const ALL: [Break; 55] = [
        Break::AckBeforeSecondary,
        Break::FlushedAtCompletion,
        Break::EpochOrder,
        Break::FuaEpoch,
        Break::CopyOrder,
        Break::PartialGrainClears,
        Break::DemotionUndurable,
        Break::PayloadNotKept,
        Break::SwitchUndrained,
        Break::FailedWriteClean,
        Break::OverlapOrder,
        Break::ResyncForgetsInFlight,
        Break::FuaDropped,
        Break::ZeroOneLeg,
        Break::HeldForEver,
        Break::UnrecordedAcknowledged,
        Break::HealthBeforeRecord,
        Break::GenerationCeiling,
        Break::LegClock,
        Break::MarkNotAwaited,
        Break::PrimaryLeftUnflushed,
        Break::SecondaryLeftUnflushed,
        Break::SavedWithoutPieces,
        Break::SavedWithoutUnflushed,
        Break::ClearedUnsaved,
        Break::ClearedBeforeSaved,
        Break::MarkFailureIgnored,
        Break::SaveFailureIgnored,
        Break::TrackedAfterFailedFlush,
        Break::TrackedAfterAttach,
        Break::AnsweredBeforeDemoted,
        Break::MovedToIncomplete,
        Break::MovedUndrained,
        Break::RewriteOvertakes,
        Break::DoubtForgotten,
        Break::CopiedFromDoubted,
        Break::FailoverForgotten,
        Break::HeldByFailover,
        Break::DoubtedCompared,
        Break::DoubtUnrecorded,
        Break::HostTakenForDisk,
        Break::SpoiledSigned,
        Break::SecondaryTrusted,
        Break::DoubtedSigned,
        Break::StaleKept,
        Break::MatchedOutdated,
        Break::RecognisedOutdated,
        Break::RecalledOutdated,
        Break::SuspectUnrecorded,
        Break::SuspectCopied,
        Break::JudgedOutdated,
        Break::AccusedByOther,
        Break::MendedUnsuspected,
        Break::MendedUnflushed,
        Break::DecidedUnflushed,
    ];
}

#[cfg(feature = "breaks")]
thread_local! {
    static ARMED: std::cell::Cell<Option<Break>> = const { std::cell::Cell::new(None) };
}

/// Whether the core is to forget this ordering.
#[cfg(feature = "breaks")]
pub fn on(which: Break) -> bool {
    ARMED.get() == Some(which)
}

/// Whether the core is to forget this ordering: never, without the feature `breaks`.
#[cfg(not(feature = "breaks"))]
#[inline(always)]
pub const fn on(_which: Break) -> bool {
    false
}

/// Choose the fault of every core that this thread runs from now on.
#[cfg(feature = "breaks")]
pub fn arm(which: Option<Break>) {
    ARMED.set(which);
}
