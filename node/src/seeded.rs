//! Deliberate mistakes, at most one at a time: each takes away one guard of the protocol, and a named check must then fail.
//! They show that the checks can see. Without the feature `seeded-bugs` nothing of this is in the program: [`on`] is a
//! constant, and [`MARK`] is not among the program's bytes.

/// One guard that can be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// Records of a deposed leader are applied.
    EpochUnchecked = 1,
    /// A record counts though one before it is missing.
    SequenceUnchecked,
    /// A claim counts though the leader was heard of after what it builds on.
    BaseUnchecked,
    /// An acknowledgement answers the client though somebody else's record may stand before it.
    ContiguityUnchecked,
    /// Reads need no lease.
    ReadWithoutLease,
    /// The lease is not looked at again after the state was read.
    LeaseUnconfirmed,
    /// That the epoch goes on is not looked at again after the state was read.
    TenureUnconfirmed,
    /// A read that arrives while a record is in flight is answered by that record.
    RecordServesLaterReads,
    /// A write whose fate the producer does not know is said to have had no effect.
    UnknownTakenAsNone,
    /// A write that is not found at the end of the log is said to have had no effect.
    ReadBackTakenAsFinal,
    /// Each node waits for its own lease time, not for that of the epoch.
    OwnLease,
    /// A rival does not wait for the lease to end.
    ClaimBeforeLeaseEnds,
    /// The leader uses its lease to the last moment.
    LeaseWithoutMargin,
    /// The lease of a claim runs from when it was read, not from when it was sent.
    LeaseFromReading,
    /// The leader goes on to read while it gives leadership away.
    ServesWhileReleasing,
    /// What was deleted stays in PostgreSQL.
    TombstonesDropped,
    /// After a restart one record is passed over.
    ResumesOneLater,
    /// A process whose schema belongs to a newer one goes on to write.
    OwnerUnchecked,
    /// A flush does not look whether the slot stands where it thinks.
    OffsetUnchecked,
    /// A snapshot has the rows and the offset, and not what the next record is judged by.
    SnapshotWithoutProtocol,
    /// A replica whose state is put together from several cuts takes part before the log was applied up to the newest.
    ServesBeforeWhole,
    /// The log is trimmed by what is committed, though a crash of PostgreSQL may take it back.
    TrimsFlushed,
    /// A new leader does not know the idempotency keys of its predecessors.
    DedupForgotten,
    /// An assignment is followed whatever it builds on.
    AssignmentWithoutFence,
}

/// Mistakes in the slot protocol.
pub const ALL: [Bug; 15] = [
    Bug::EpochUnchecked,
    Bug::SequenceUnchecked,
    Bug::BaseUnchecked,
    Bug::ContiguityUnchecked,
    Bug::ReadWithoutLease,
    Bug::LeaseUnconfirmed,
    Bug::TenureUnconfirmed,
    Bug::RecordServesLaterReads,
    Bug::UnknownTakenAsNone,
    Bug::ReadBackTakenAsFinal,
    Bug::OwnLease,
    Bug::ClaimBeforeLeaseEnds,
    Bug::LeaseWithoutMargin,
    Bug::LeaseFromReading,
    Bug::ServesWhileReleasing,
];

/// Mistakes at its edges.
pub const EDGES: [Bug; 4] = [
    Bug::TombstonesDropped,
    Bug::ResumesOneLater,
    Bug::OwnerUnchecked,
    Bug::OffsetUnchecked,
];

/// Mistakes in snapshots and trimming.
pub const STORAGE: [Bug; 3] = [
    Bug::SnapshotWithoutProtocol,
    Bug::ServesBeforeWhole,
    Bug::TrimsFlushed,
];
/// Mistakes in how a retried request is known again.
pub const RETRIES: [Bug; 1] = [Bug::DedupForgotten];
/// Mistakes in whose assignment is followed.
pub const ASSIGNMENTS: [Bug; 1] = [Bug::AssignmentWithoutFence];

/// Names the mistake to the program that is built with them.
pub const BUG_VARIABLE: &str = "KVCLUSTER_SEEDED_BUG";

/// Bytes that a program with seeded bugs contains, and no other.
pub const MARK: &str = "this program can be made to lose data";

/// Whether a guard is taken away: never, in this build.
#[cfg(not(feature = "seeded-bugs"))]
#[inline]
pub const fn on(_: Bug) -> bool {
    false
}

#[cfg(feature = "seeded-bugs")]
pub use switch::{on, set};

#[cfg(feature = "seeded-bugs")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Bug;

    static ACTIVE: AtomicU8 = AtomicU8::new(0);

    /// Whether a guard is taken away.
    pub fn on(bug: Bug) -> bool {
        ACTIVE.load(Ordering::Relaxed) == bug as u8
    }

    /// Takes one guard away, for the whole process, and gives the others back.
    pub fn set(bug: Option<Bug>) {
        if bug.is_some() {
            eprintln!("{}: {bug:?}", super::MARK);
        }
        ACTIVE.store(bug.map_or(0, |bug| bug as u8), Ordering::Relaxed);
    }
}
