//! What the REST side sees of the slots: who serves a slot, writes, permits to read, and the errors of these with whether
//! they took effect. The runtime implements [`Slots`]; the API's tests have a fake.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::future::BoxFuture;
use kvcluster_crds::{LogId, NodeId, NodeStatus, Offset, SlotId};
use tokio::time::Instant;

use crate::effect::{Effect, Idempotency};
use crate::seeded::{self, Bug};

/// Who serves a slot, as this node sees it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// This node leads it.
    Here,
    /// Another node leads it.
    Node {
        /// The leader.
        node: NodeId,
        /// Its REST address, `host:port`.
        address: String,
    },
    /// No leader is known: none yet, or an election is on.
    Nobody,
}

/// Why a slot did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Another node leads, or none. Nothing happened.
    #[error("this node does not lead slot {slot}")]
    NotLeader {
        /// The slot.
        slot: SlotId,
    },
    /// The record was sent and its fate is not known within the deadline. It may take effect, or have taken effect.
    #[error("the outcome of the write in slot {slot} is not known")]
    Unknown {
        /// The slot.
        slot: SlotId,
    },
    /// The record was sent and will never count. Nothing happened.
    #[error("slot {slot} changed its leader before the write was in the log")]
    Lost {
        /// The slot.
        slot: SlotId,
    },
    /// A limit is reached. Nothing happened.
    #[error("{what}")]
    Overloaded {
        /// The limit, in words with its number.
        what: String,
    },
    /// The idempotency key belongs to another request. Nothing happened.
    #[error("the idempotency key was used in slot {slot} for another request")]
    KeyReused {
        /// The slot.
        slot: SlotId,
    },
    /// The leader could not prove in time that it still leads, or the log takes no records. Nothing happened.
    #[error("the log of slot {slot} does not answer")]
    LogUnavailable {
        /// The slot.
        slot: SlotId,
    },
    /// The replica stands still until somebody acts. Nothing happened.
    #[error("slot {slot} is frozen: {reason}")]
    Frozen {
        /// The slot.
        slot: SlotId,
        /// Why, and what to do.
        reason: String,
    },
}

/// The end of a leader's lease on the clock that also counts a suspended machine, nanoseconds; 0 when there is none.
/// Shared between the slot's state machine, which moves it, and reads, which check it.
#[derive(Debug, Default)]
pub struct LeaseClock(AtomicU64);

impl LeaseClock {
    /// Sets the end of the lease; 0 ends it.
    pub fn set(&self, end_ns: u64) {
        self.0.store(end_ns, Ordering::SeqCst);
    }

    /// A clock that shows the same and is moved by nobody else.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self(AtomicU64::new(self.0.load(Ordering::SeqCst)))
    }

    /// Whether the lease holds at `now_ns`.
    pub fn holds(&self, now_ns: u64) -> bool {
        now_ns < self.0.load(Ordering::SeqCst) || seeded::on(Bug::ReadWithoutLease)
    }
}

/// Whether a leader's epoch goes on, as far as the log is applied here. The state machine ends it *before* a record of the
/// next epoch is applied.
#[derive(Debug, Default)]
pub struct Tenure(AtomicBool);

impl Tenure {
    /// Another epoch has begun.
    pub fn end(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// A tenure in the same state that is ended by nobody else.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self(AtomicBool::new(self.has_ended()))
    }

    /// Whether another epoch has begun.
    pub fn has_ended(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Leave to answer a linearizable read, to be confirmed *after* the state was read. A permit that is not confirmed proves
/// nothing: the replica may follow another leader by then, and its state may hold what that leader does not yet know to be
/// in the log and still answers without.
#[derive(Clone, Debug)]
pub enum ReadPermit {
    /// By lease: confirmed iff the lease still holds.
    Lease(Arc<LeaseClock>),
    /// By a record that was sent after the read arrived and is known valid: confirmed iff the epoch of that record goes on.
    Record(Arc<Tenure>),
}

impl ReadPermit {
    /// Whether the state that was read may be answered, at `now_ns` of the lease's clock.
    pub fn confirm(&self, now_ns: u64) -> bool {
        match self {
            Self::Lease(lease) => lease.holds(now_ns) || seeded::on(Bug::LeaseUnconfirmed),
            Self::Record(tenure) => !tenure.has_ended() || seeded::on(Bug::TenureUnconfirmed),
        }
    }
}

/// The slots of this node.
pub trait Slots: Send + Sync + 'static {
    /// Number of slots of the cluster.
    fn count(&self) -> u32;

    /// Who serves `slot`.
    fn place(&self, slot: SlotId) -> Place;

    /// Waits until the place of `slot` is another than `seen`, or the deadline.
    fn place_changed(&self, slot: SlotId, seen: Place, deadline: Instant) -> BoxFuture<'_, Place>;

    /// Writes one record with `effects` through this node as the leader; answers its offset once it is acknowledged. When a
    /// request with the same idempotency key took effect before, the offset of that one's record.
    fn write(
        &self,
        slot: SlotId,
        effects: Vec<Effect>,
        idempotency: Option<Idempotency>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Offset, SlotError>>;

    /// Waits for leave to read `slot` at this node as the leader.
    fn read(&self, slot: SlotId, deadline: Instant)
    -> BoxFuture<'_, Result<ReadPermit, SlotError>>;

    /// The log that is followed.
    fn log_id(&self) -> LogId;

    /// The next offset that the replica of `slot` here will apply; none when there is no replica, or it stands still.
    fn applied(&self, slot: SlotId) -> Option<Offset>;

    /// Waits until the replica of `slot` here has applied the record at `offset`, or the deadline; whether it has.
    fn has_applied(&self, slot: SlotId, offset: Offset, deadline: Instant) -> BoxFuture<'_, bool>;

    /// The next offset at which a replica of `slot` holds all that was acknowledged until `within_ms` milliseconds ago, by the
    /// wall clocks of its leader and of this node; none when no leader elsewhere has said so lately.
    fn fresh_from(&self, slot: SlotId, within_ms: u64) -> Option<Offset>;

    /// The addresses of all nodes, and whether each is this one.
    fn nodes(&self) -> Vec<(NodeId, String)>;

    /// What `GET /status` answers.
    fn status(&self) -> NodeStatus;
}
