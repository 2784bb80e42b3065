//! What happens to a replica and what is to be done: the words that the state machine is spoken to in.

use bytes::Bytes;
use kvcluster_crds::{Epoch, Incarnation, LogId, NodeId, Offset, SlotId, SlotRole};

use super::election::Hints;
use crate::effect::{Applied, Effect, Idempotency, Loaded};
use crate::service::{ReadPermit, SlotError};

/// What never changes in the life of a machine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The slot.
    pub slot: SlotId,
    /// The node that holds the replica.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// The log that is followed.
    pub log_id: LogId,
    /// The lease of epochs that this node leads in, milliseconds.
    pub lease_ms: u32,
    /// Whether reads may trust the lease; if not, each group of them waits for a record.
    pub reads_by_lease: bool,
    /// Most idempotency keys that are remembered: above, writes with a new one are refused.
    pub dedup_entries_max: usize,
    /// Counts the replicas of the slot that this process has had: fates of records of an earlier one may still come.
    pub life: u32,
}

/// Names a record that was handed to the log, within a process and a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// Names a read or write of a client, within a machine; chosen by the caller.
pub type RequestId = u64;

/// A client's write.
#[derive(Clone, Debug)]
pub struct WriteRequest {
    /// Answered by [`Output::WriteAnswer`] or [`Output::Repeat`].
    pub id: RequestId,
    /// The changes.
    pub effects: Vec<Effect>,
    /// What it is known again by.
    pub idempotency: Option<Idempotency>,
    /// The wall clock, milliseconds since 1970. Nothing but the age of what is remembered depends on it.
    pub wall_ms: u64,
    /// Answered by then.
    pub deadline_ns: u64,
}

/// What happens to a replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// The consumer read a record. Offsets that it passes over hold none.
    Record {
        /// Its place.
        offset: Offset,
        /// Its bytes.
        bytes: Bytes,
    },
    /// The consumer stood at the end of the log: everything before was handed over.
    CaughtUp,
    /// The log ended at this (next) offset when somebody looked.
    End(Offset),
    /// The log took an own record.
    Delivered {
        /// The record.
        token: Token,
        /// Its place.
        offset: Offset,
    },
    /// It is not known, and will not become known, whether the log took an own record.
    DeliveryUnknown {
        /// The record.
        token: Token,
    },
    /// A client writes.
    Write(WriteRequest),
    /// A client reads.
    Read {
        /// Answered by [`Output::ReadAnswer`].
        id: RequestId,
        /// Answered by then.
        deadline_ns: u64,
    },
    /// The rest of the node changed.
    Hints(Hints),
    /// The log does not go on from where this replica stands, or only by very many records: only a snapshot helps, or it helps
    /// more. The replica stands still until [`Input::Restored`].
    Behind(Behind),
    /// The log cannot be followed from where this replica stands.
    Freeze(String),
    /// The state was replaced by a snapshot; none: it is as it was, and the log is read after all. The consumer begins anew at
    /// [`SlotMachine::follow_from`].
    ///
    /// [`SlotMachine::follow_from`]: super::SlotMachine::follow_from
    Restored(Option<Loaded>),
    /// The node stops: give leadership away and take none.
    Stop,
    /// Time passed.
    Tick,
}

/// Why a replica needs a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// In words.
    pub reason: String,
    /// A snapshot of this offset or a later one helps.
    pub least: Offset,
    /// Whether the log would do as well, only slower.
    pub can_replay: bool,
}

/// What is to be done, in this order.
#[derive(Clone, Debug)]
pub enum Output {
    /// Append a record to the slot's log.
    Append {
        /// Comes back with its fate.
        token: Token,
        /// The record.
        bytes: Bytes,
    },
    /// Take a judged record into the store.
    Apply(Applied),
    /// Answer a write.
    WriteAnswer {
        /// Which.
        id: RequestId,
        /// The offset of its record, or why there is none.
        answer: Result<Offset, SlotError>,
    },
    /// Answer a write by an earlier request with its idempotency key.
    Repeat {
        /// Which.
        id: RequestId,
        /// Offset of the earlier request's record.
        version: Offset,
        /// Whether that asked for the same; else the key was used for two things, and the write is refused.
        is_same: bool,
        /// Leave to say so.
        permit: ReadPermit,
    },
    /// Answer a read.
    ReadAnswer {
        /// Which.
        id: RequestId,
        /// Leave to read.
        answer: Result<ReadPermit, SlotError>,
    },
    /// Another node serves the slot now, as far as this replica knows; none during an election.
    Place(Option<NodeId>),
    /// The replica stands still until somebody acts.
    Frozen(String),
}

/// A machine as others may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// What the replica does.
    pub role: SlotRole,
    /// Who leads by the log, whether or not it serves.
    pub leader: Option<NodeId>,
    /// The epoch by the log.
    pub epoch: Epoch,
    /// The next offset to judge.
    pub applied: Offset,
    /// Whether the state is that of one offset, see [`SlotPosition::whole_at`].
    pub whole: bool,
    /// Whether the end of the log was reached, and not lost sight of since.
    pub caught_up: bool,
    /// Whether the replica could lead now.
    pub can_lead: bool,
    /// Records that counted.
    pub records_valid: u64,
    /// Records that were read and did not count.
    pub records_ignored: u64,
    /// Why it stands still.
    pub frozen: Option<String>,
}

impl Token {
    pub(super) fn next(tokens: &mut u64) -> Self {
        *tokens += 1;
        Self(*tokens)
    }
}
