//! What waits at a leader, and for what.

use kvcluster_crds::Offset;

use crate::effect::{Effect, Idempotency};
use crate::log::codec::Entry;
use crate::service::{ReadPermit, SlotError};
use crate::slot::event::{Output, RequestId, Token, WriteRequest};

/// A record that is sent and not judged.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub(super) token: Token,
    pub(super) seq: u64,
    pub(super) sent_at_ns: u64,
    pub(super) entry: Entry,
    pub(super) checksum: u64,
    pub(super) acknowledged: Option<Offset>,
    /// Whose write it is, and until when that is answered.
    pub(super) write: Option<(RequestId, u64)>,
    pub(super) joined: Vec<Joined>,
    pub(super) reads: Vec<ReadRequest>,
}

/// A write that is not sent yet.
#[derive(Clone, Debug)]
pub(super) struct Staged {
    pub(super) id: RequestId,
    pub(super) deadline_ns: u64,
    pub(super) effects: Vec<Effect>,
    pub(super) idempotency: Option<Idempotency>,
    pub(super) time_ms: u64,
    pub(super) bytes: usize,
    pub(super) joined: Vec<Joined>,
}

/// Another request with the idempotency key of a record that is not judged.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    pub(super) id: RequestId,
    pub(super) deadline_ns: u64,
    /// Whether it asks for the same.
    pub(super) is_same: bool,
}

/// A read, or a repeated write, that waits for leave.
#[derive(Clone, Debug)]
pub(in crate::slot) struct ReadRequest {
    pub(in crate::slot) id: RequestId,
    pub(in crate::slot) deadline_ns: u64,
    pub(in crate::slot) repeat: Option<Repeat>,
}

/// What is remembered of the request that a write repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::slot) struct Repeat {
    pub(in crate::slot) version: Offset,
    pub(in crate::slot) is_same: bool,
}

impl InFlight {
    pub(super) fn idempotency(&self) -> Option<&Idempotency> {
        match &self.entry {
            Entry::Ours(record) => record.idempotency(),
            Entry::Foreign => None,
        }
    }
}

impl Joined {
    /// The record counts and stands at `version`.
    pub(super) fn repeating(self, version: Offset) -> ReadRequest {
        ReadRequest {
            id: self.id,
            deadline_ns: self.deadline_ns,
            repeat: Some(Repeat {
                version,
                is_same: self.is_same,
            }),
        }
    }
}

impl WriteRequest {
    pub(super) fn repeating(&self, repeat: Repeat) -> ReadRequest {
        ReadRequest {
            id: self.id,
            deadline_ns: self.deadline_ns,
            repeat: Some(repeat),
        }
    }
}

impl ReadRequest {
    /// The output that answers it.
    pub(in crate::slot) fn answer(self, answer: Result<ReadPermit, SlotError>) -> Output {
        let id = self.id;
        match (self.repeat, answer) {
            (None, answer) => Output::ReadAnswer { id, answer },
            (Some(_), Err(error)) => Output::WriteAnswer {
                id,
                answer: Err(error),
            },
            (Some(repeat), Ok(permit)) => Output::Repeat {
                id,
                version: repeat.version,
                is_same: repeat.is_same,
                permit,
            },
        }
    }
}
