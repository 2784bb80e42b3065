//! The state of the slots: PostgreSQL behind an overlay of what is not flushed yet and a bounded cache.
//!
//! The log is the truth; what stands here is derived and can be rebuilt. A flush is one transaction for all dirty slots of
//! the node with the compare-and-set of every slot's `next_offset`.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kvcluster_crds::{Offset, SlotId};

use crate::effect::{Applied, Loaded, Versioned};

pub mod batch;
pub mod cache;
mod dedup;
mod export;
mod flush;
#[cfg(test)]
pub(crate) mod memory;
mod migrate;
pub mod overlay;
mod owner;
pub mod postgres;
mod remove;
mod restore;
mod rows;
mod scan;
mod shared;
pub mod snapshot;
mod sql;
mod write;

/// Why the store did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// PostgreSQL does not answer, or not in time.
    #[error("PostgreSQL does not answer: {0}")]
    Unavailable(String),
    /// Another process of this node owns the schema: this one must end.
    #[error("another process owns the schema {0}: this one is fenced")]
    Fenced(String),
    /// The schema is not one of ours, or newer than this program.
    #[error("the schema cannot be used: {0}")]
    Schema(String),
}

/// Why there is no snapshot of a slot here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node has no replica of it.
    #[error("there is no replica of slot {slot} here")]
    NotHere {
        /// The slot.
        slot: SlotId,
    },
    /// It is being restored itself.
    #[error("the replica of slot {slot} is not whole itself")]
    NotWhole {
        /// The slot.
        slot: SlotId,
    },
    /// The log does not go on from it any more, or it helps too little.
    #[error("the replica of slot {slot} stands at {at}, and {least} is needed")]
    TooOld {
        /// The slot.
        slot: SlotId,
        /// Where it stands.
        at: Offset,
        /// What was asked for.
        least: Offset,
    },
}

/// Why a slot was not restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The own store does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source gave nothing that helps; the old state is still there and loaded.
    #[error("the snapshot's source: {0}")]
    Source(String),
    /// The source broke off, or gave something else, after a part of the snapshot had taken the place of the old state.
    #[error("the snapshot is not whole yet: {0}")]
    Broken(String),
}

/// A key and its value, from a scan.
pub type Row = (Bytes, Versioned);

/// How far a slot's state has come. Offsets are the next ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Committed up to here.
    pub flushed: i64,
    /// Committed so that a crash of PostgreSQL cannot take it back, up to here.
    pub durable: i64,
}

/// The state of the slots of a node.
pub trait Store: Send + Sync + 'static {
    /// Loads where `slots`, none of them loaded before, stand and what they remember of requests, making what is missing;
    /// afterwards [`Store::apply`] takes their records.
    fn load<'a>(
        &'a self,
        slots: &'a [SlotId],
    ) -> BoxFuture<'a, Result<Vec<(SlotId, Loaded)>, StoreError>>;

    /// What the schema has of slots, loaded or not, and up to which (next) offset; of one that is only partly restored: 0.
    fn stored(&self) -> BoxFuture<'_, Result<Vec<(SlotId, Offset)>, StoreError>>;

    /// Takes a slot out of memory, once no flush of it is under way; what was not flushed is in the log. It may be loaded again.
    fn unload(&self, slot: SlotId) -> BoxFuture<'_, ()>;

    /// Removes everything that the schema has of a slot that is not loaded.
    fn remove(&self, slot: SlotId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Bytes that the rows of slots take, indexes included.
    fn sizes(&self) -> BoxFuture<'_, Result<Vec<(SlotId, u64)>, StoreError>>;

    /// Takes the effects of one valid or ignored record into memory. Called in order of offsets for each slot, never blocks;
    /// reads see it at once, the next flush writes it.
    fn apply(&self, applied: Applied);

    /// The value of a key as of all that was applied.
    fn get<'a>(
        &'a self,
        slot: SlotId,
        key: &'a Bytes,
    ) -> BoxFuture<'a, Result<Option<Versioned>, StoreError>>;

    /// All pairs of a slot, ordered by key: one cut, taken before this returns. The stream ends early only with an error.
    fn scan(
        &self,
        slot: SlotId,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Row, StoreError>>, StoreError>>;

    /// How far `slot` has come.
    fn progress(&self, slot: SlotId) -> Progress;

    /// Bytes of memory that effects take until they stand in PostgreSQL for good (committed, and a crash of PostgreSQL cannot
    /// take them back).
    fn unflushed_bytes(&self) -> u64;

    /// Whether the last statement went well.
    fn connected(&self) -> bool;

    /// Writes everything that is applied, durably; for a graceful stop.
    fn flush_all(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Resolves, once, when the store can never go on in this process: fenced, or `slot_state` was moved by somebody else, or
    /// fell back below what was durable. The process must end; its next start replays the log.
    fn failed(&self) -> BoxFuture<'_, StoreError>;
}

/// What a restore asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The rows behind this key; empty: all.
    pub after: Bytes,
    /// Of a cut at this offset or later: what stands between an older one and the rows that are there is never read.
    pub least: Offset,
}

/// Slots of a node as snapshots: given to others, and taken from them.
pub trait Snapshots: Send + Sync + 'static {
    /// The rows of `slot` behind the key `after` (empty: all) as of one cut, at offset `least` or later, and the position of
    /// the cut. The stream ends early only with an error.
    fn export(
        &self,
        slot: SlotId,
        after: Bytes,
        least: Offset,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, StoreError>>, ExportError>>;

    /// What is to be asked for so that `slot` is restored at `least` or later: everything, or what an interrupted restore does
    /// not have yet, if the log goes on from that.
    fn missing(&self, slot: SlotId, least: Offset) -> BoxFuture<'_, Result<Missing, StoreError>>;

    /// Takes the stream of an export of what [`Snapshots::missing`] names. The state that was there goes
    /// when the first rows come. Afterwards [`Store::load`] answers the new position, `least` or later. After an error,
    /// another stream goes on behind what was taken. The slot is not loaded any more when the first rows were taken.
    fn restore<'a>(
        &'a self,
        slot: SlotId,
        least: Offset,
        stream: BoxStream<'a, Result<Bytes, String>>,
    ) -> BoxFuture<'a, Result<(), RestoreError>>;
}

/// Snapshots of a store that has none to give and takes none: of those in memory, for tests and simulations.
pub struct NoSnapshots;

impl Snapshots for NoSnapshots {
    fn export(
        &self,
        slot: SlotId,
        _after: Bytes,
        _least: Offset,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, StoreError>>, ExportError>> {
        std::future::ready(Err(ExportError::NotHere { slot })).boxed()
    }

    fn missing(&self, _slot: SlotId, least: Offset) -> BoxFuture<'_, Result<Missing, StoreError>> {
        let after = Bytes::new();
        std::future::ready(Ok(Missing { after, least })).boxed()
    }

    fn restore<'a>(
        &'a self,
        _slot: SlotId,
        _least: Offset,
        _stream: BoxStream<'a, Result<Bytes, String>>,
    ) -> BoxFuture<'a, Result<(), RestoreError>> {
        let refused = RestoreError::Source("this store takes no snapshots".to_owned());
        std::future::ready(Err(refused)).boxed()
    }
}
