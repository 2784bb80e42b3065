//! The binary form of the log's records. Pure.
//!
//! ```text
//! magic "KVLR" | format u8 | checksum u64 | kind u8 | log id u64 | fields of the kind
//! ```
//! A command's fields: epoch u64 | incarnation u64 | seq u64 | time u64 | length of the idempotency key u8, and when it is not
//! 0 the key and the fingerprint u64 | number of effects u32 | the effects. An effect: kind u8 | length u32, key | for a put
//! length u32, value.
//!
//! Numbers are big-endian. The checksum is `xxh3_64` of everything after it, seeded with the format, so that damage
//! anywhere is seen. What does not begin with the magic is some other program's record: skipped by every replica alike.
//! What begins with it and cannot be read stops every replica at the same place.

use bytes::{BufMut, Bytes, BytesMut};
use kvcluster_crds::{Epoch, Incarnation, LogId, NodeId, Offset};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::effect::{
    Effect, IDEMPOTENCY_KEY_BYTES_MAX, Idempotency, KEY_BYTES_MAX, VALUE_BYTES_MAX,
};

/// Newest format of records that this program reads and writes.
pub const FORMAT: u8 = 1;
/// Largest record, bytes: one put of the largest key and value, and room for the rest. Smaller than the topic's
/// `max.message.bytes`.
pub const RECORD_BYTES_MAX: usize = 1_200_000;

const MAGIC: &[u8; 4] = b"KVLR";
const HEADER_BYTES: usize = 13;
const KIND_CLAIM: u8 = 1;
const KIND_COMMAND: u8 = 2;
const KIND_RENEW: u8 = 3;
const KIND_RELEASE: u8 = 4;
const EFFECT_PUT: u8 = 1;
const EFFECT_DELETE: u8 = 2;
const NO_OFFSET: i64 = -1;

/// One record of a slot's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The life of the log that the record is meant for.
    pub log_id: LogId,
    /// What it says.
    pub body: Body,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A node wants to lead.
    Claim {
        /// The epoch that it would lead in.
        epoch: Epoch,
        /// The claimant.
        node: NodeId,
        /// Its process start.
        incarnation: Incarnation,
        /// The last valid record of the current leader, as the claimant knows it.
        based_on: Option<Offset>,
        /// The lease of the epoch, milliseconds.
        lease_ms: u32,
    },
    /// The leader changes keys.
    Command {
        /// The leader's epoch.
        epoch: Epoch,
        /// Its process start.
        incarnation: Incarnation,
        /// Counts the leader's records of the epoch, from 1; the claim is 0.
        seq: u64,
        /// The leader's wall clock or the slot's time before, whichever is later: milliseconds since 1970.
        time_ms: u64,
        /// What the request is known again by, when its client wanted that.
        idempotency: Option<Idempotency>,
        /// The changes, in order.
        effects: Vec<Effect>,
    },
    /// The leader shows that it still leads.
    Renew {
        /// The leader's epoch.
        epoch: Epoch,
        /// Its process start.
        incarnation: Incarnation,
        /// As in a command.
        seq: u64,
    },
    /// The leader gives the slot to another node; its last record of the epoch.
    Release {
        /// The leader's epoch.
        epoch: Epoch,
        /// Its process start.
        incarnation: Incarnation,
        /// As in a command.
        seq: u64,
        /// Who may claim at once.
        to: NodeId,
    },
}

/// Why bytes are not a record that this program can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No magic: some other program's record.
    #[error("not a record of this log")]
    Foreign,
    /// Damaged on its way.
    #[error("the record is damaged: its checksum differs")]
    Checksum,
    /// Written by a newer program.
    #[error("record format {0} is newer than this program reads ({FORMAT}); upgrade it")]
    TooNew(u8),
    /// Ends too early.
    #[error("the record ends too early")]
    Truncated,
    /// The checksum fits and the content does not.
    #[error("the record is malformed: {0}")]
    Malformed(&'static str),
}

/// What a place of the log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A record of this program.
    Ours(Record),
    /// Some other program's record.
    Foreign,
}

/// The checksum by which a replica knows a record again: of all its bytes.
pub fn checksum(record: &[u8]) -> u64 {
    xxh3_64(record)
}

impl Entry {
    /// Reads what a place of the log holds. An error means that no replica can go on behind this record.
    pub fn read(bytes: &Bytes) -> Result<Self, DecodeError> {
        match Record::decode(bytes) {
            Ok(record) => Ok(Self::Ours(record)),
            Err(DecodeError::Foreign) => Ok(Self::Foreign),
            Err(error) => Err(error),
        }
    }
}

impl Record {
    /// The changes that it makes if it counts; none when it is no command.
    pub fn effects(&self) -> Vec<Effect> {
        match &self.body {
            Body::Command { effects, .. } => effects.clone(),
            Body::Claim { .. } | Body::Renew { .. } | Body::Release { .. } => Vec::new(),
        }
    }

    /// What its request is known again by.
    pub fn idempotency(&self) -> Option<&Idempotency> {
        match &self.body {
            Body::Command { idempotency, .. } => idempotency.as_ref(),
            Body::Claim { .. } | Body::Renew { .. } | Body::Release { .. } => None,
        }
    }

    /// The bytes of the record.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + self.body.bytes_estimate());
        bytes.put_slice(MAGIC);
        bytes.put_u8(FORMAT);
        bytes.put_u64(0);
        self.encode_body(&mut bytes);
        let sum = xxh3_64_with_seed(&bytes[HEADER_BYTES..], u64::from(FORMAT));
        bytes[5..HEADER_BYTES].copy_from_slice(&sum.to_be_bytes());
        bytes.freeze()
    }

    /// The record in `bytes`. Keys and values share the memory of `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        if bytes.len() < MAGIC.len() || &bytes[..MAGIC.len()] != MAGIC {
            return Err(DecodeError::Foreign);
        }
        let mut reader = Reader {
            bytes,
            place: MAGIC.len(),
        };
        let format = reader.u8()?;
        if format > FORMAT {
            return Err(DecodeError::TooNew(format));
        }
        let sum = reader.u64()?;
        if sum != xxh3_64_with_seed(&bytes[HEADER_BYTES..], u64::from(format)) {
            return Err(DecodeError::Checksum);
        }
        if format < FORMAT {
            return Err(DecodeError::Malformed("there is no such format"));
        }
        let record = reader.record()?;
        if reader.place != bytes.len() {
            return Err(DecodeError::Malformed("bytes are left over"));
        }
        Ok(record)
    }

    fn encode_body(&self, bytes: &mut BytesMut) {
        let kind = match self.body {
            Body::Claim { .. } => KIND_CLAIM,
            Body::Command { .. } => KIND_COMMAND,
            Body::Renew { .. } => KIND_RENEW,
            Body::Release { .. } => KIND_RELEASE,
        };
        bytes.put_u8(kind);
        bytes.put_u64(self.log_id.0);
        match &self.body {
            Body::Claim {
                epoch,
                node,
                incarnation,
                based_on,
                lease_ms,
            } => {
                bytes.put_u64(epoch.0);
                bytes.put_u64(incarnation.0);
                bytes.put_u32(node.0);
                bytes.put_i64(based_on.map_or(NO_OFFSET, |offset| offset.0));
                bytes.put_u32(*lease_ms);
            }
            Body::Command {
                epoch,
                incarnation,
                seq,
                time_ms,
                idempotency,
                effects,
            } => {
                put_place(bytes, *epoch, *incarnation, *seq);
                bytes.put_u64(*time_ms);
                put_idempotency(bytes, idempotency.as_ref());
                put_effects(bytes, effects);
            }
            Body::Renew {
                epoch,
                incarnation,
                seq,
            } => {
                put_place(bytes, *epoch, *incarnation, *seq);
            }
            Body::Release {
                epoch,
                incarnation,
                seq,
                to,
            } => {
                put_place(bytes, *epoch, *incarnation, *seq);
                bytes.put_u32(to.0);
            }
        }
    }
}

impl Body {
    /// Epoch and incarnation that the record was written in.
    pub fn author(&self) -> (Epoch, Incarnation) {
        match *self {
            Self::Claim {
                epoch, incarnation, ..
            }
            | Self::Command {
                epoch, incarnation, ..
            }
            | Self::Renew {
                epoch, incarnation, ..
            }
            | Self::Release {
                epoch, incarnation, ..
            } => (epoch, incarnation),
        }
    }

    fn bytes_estimate(&self) -> usize {
        const FIXED: usize = 64;
        const EACH: usize = 8;
        match self {
            Self::Command {
                effects,
                idempotency,
                ..
            } => {
                let named = idempotency.as_ref();
                FIXED
                    + named.map_or(0, |idempotency| idempotency.key.len() + EACH)
                    + effects
                        .iter()
                        .map(|effect| effect.bytes() + EACH)
                        .sum::<usize>()
            }
            _ => FIXED,
        }
    }
}

fn put_place(bytes: &mut BytesMut, epoch: Epoch, incarnation: Incarnation, seq: u64) {
    bytes.put_u64(epoch.0);
    bytes.put_u64(incarnation.0);
    bytes.put_u64(seq);
}

fn put_idempotency(bytes: &mut BytesMut, idempotency: Option<&Idempotency>) {
    let Some(Idempotency { key, fingerprint }) = idempotency else {
        return bytes.put_u8(0);
    };
    bytes.put_u8(u8::try_from(key.len()).expect("an idempotency key has a limit"));
    bytes.put_slice(key);
    bytes.put_u64(*fingerprint);
}

fn put_effects(bytes: &mut BytesMut, effects: &[Effect]) {
    let length = |length: usize| u32::try_from(length).expect("a record is below 4 GiB");
    bytes.put_u32(length(effects.len()));
    for effect in effects {
        let (tag, key, value) = match effect {
            Effect::Put { key, value } => (EFFECT_PUT, key, Some(value)),
            Effect::Delete { key } => (EFFECT_DELETE, key, None),
        };
        bytes.put_u8(tag);
        bytes.put_u32(length(key.len()));
        bytes.put_slice(key);
        if let Some(value) = value {
            bytes.put_u32(length(value.len()));
            bytes.put_slice(value);
        }
    }
}

struct Reader<'a> {
    bytes: &'a Bytes,
    place: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let rest = &self.bytes[self.place..];
        let (head, _) = rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated)?;
        self.place += N;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_be_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    fn text(&mut self, limit: usize, too_long: &'static str) -> Result<Bytes, DecodeError> {
        let length = self.u32()? as usize;
        if length > limit {
            return Err(DecodeError::Malformed(too_long));
        }
        self.bytes(length)
    }

    fn bytes(&mut self, length: usize) -> Result<Bytes, DecodeError> {
        if length > self.bytes.len() - self.place {
            return Err(DecodeError::Truncated);
        }
        let text = self.bytes.slice(self.place..self.place + length);
        self.place += length;
        Ok(text)
    }

    fn record(&mut self) -> Result<Record, DecodeError> {
        let kind = self.u8()?;
        let log_id = LogId(self.u64()?);
        let epoch = Epoch(self.u64()?);
        let incarnation = Incarnation(self.u64()?);
        let body = match kind {
            KIND_CLAIM => Body::Claim {
                epoch,
                incarnation,
                node: NodeId(self.u32()?),
                based_on: self.offset()?,
                lease_ms: self.u32()?,
            },
            KIND_COMMAND => Body::Command {
                epoch,
                incarnation,
                seq: self.u64()?,
                time_ms: self.u64()?,
                idempotency: self.idempotency()?,
                effects: self.effects()?,
            },
            KIND_RENEW => Body::Renew {
                epoch,
                incarnation,
                seq: self.u64()?,
            },
            KIND_RELEASE => Body::Release {
                epoch,
                incarnation,
                seq: self.u64()?,
                to: NodeId(self.u32()?),
            },
            _ => return Err(DecodeError::Malformed("there is no such kind of record")),
        };
        Ok(Record { log_id, body })
    }

    fn offset(&mut self) -> Result<Option<Offset>, DecodeError> {
        match i64::from_be_bytes(self.take()?) {
            NO_OFFSET => Ok(None),
            offset if offset >= 0 => Ok(Some(Offset(offset))),
            _ => Err(DecodeError::Malformed("an offset is below zero")),
        }
    }

    fn idempotency(&mut self) -> Result<Option<Idempotency>, DecodeError> {
        let length = usize::from(self.u8()?);
        if length == 0 {
            return Ok(None);
        }
        if length > IDEMPOTENCY_KEY_BYTES_MAX {
            return Err(DecodeError::Malformed(
                "an idempotency key is longer than the limit",
            ));
        }
        let key = self.bytes(length)?;
        let fingerprint = self.u64()?;
        Ok(Some(Idempotency { key, fingerprint }))
    }

    fn effects(&mut self) -> Result<Vec<Effect>, DecodeError> {
        /// Bytes of the smallest effect: tag, length, one byte of key. Bounds what a count may make us allocate.
        const SMALLEST: usize = 6;
        let count = self.u32()? as usize;
        if count > (self.bytes.len() - self.place) / SMALLEST {
            return Err(DecodeError::Truncated);
        }
        let mut effects = Vec::with_capacity(count);
        for _ in 0..count {
            let tag = self.u8()?;
            let key = self.text(KEY_BYTES_MAX, "a key is longer than the limit")?;
            if key.is_empty() {
                return Err(DecodeError::Malformed("a key is empty"));
            }
            effects.push(match tag {
                EFFECT_PUT => {
                    let value = self.text(VALUE_BYTES_MAX, "a value is longer than the limit")?;
                    Effect::Put { key, value }
                }
                EFFECT_DELETE => Effect::Delete { key },
                _ => return Err(DecodeError::Malformed("there is no such effect")),
            });
        }
        Ok(effects)
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
