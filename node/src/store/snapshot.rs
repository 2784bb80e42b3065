//! The stream of one slot's snapshot between nodes. Pure.
//!
//! ```text
//! block: kind u8 | length of the payload u32 | checksum of kind and payload u64 | payload
//! head (1):  the position of the cut, JSON
//! rows (2):  number of rows u32 | length of the last key u16 | last key | rows, as PostgreSQL's binary COPY has them
//! end (3):   number of all rows u64, without those of dedup
//! dedup (4): what the slot remembers of requests, as the rows; before them, and only where the stream begins with the first
//! ```
//! Numbers are big-endian. Rows come ordered by key, so a stream that breaks off is resumed by another one that begins
//! behind the last key that was kept. That one is a later cut: the state is then no cut of any offset until the log was
//! applied up to the newest of them, see [`SlotPosition::whole_at`].

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::effect::{KEY_BYTES_MAX, SlotPosition, VALUE_BYTES_MAX};

mod tuples;

pub(super) use tuples::{HEADER as COPY_HEADER, TRAILER as COPY_TRAILER, Tuples};

/// A block of rows ends with the row that reaches this many bytes.
pub(super) const BLOCK_BYTES: usize = 262_144;
/// Longest payload that is taken, bytes: the rows of a block, and what one row may add to it.
const PAYLOAD_BYTES_MAX: usize = BLOCK_BYTES + KEY_BYTES_MAX * 2 + VALUE_BYTES_MAX + 256;
const BLOCK_HEADER_BYTES: usize = 13;
const HEAD: u8 = 1;
const ROWS: u8 = 2;
const END: u8 = 3;
const DEDUP: u8 = 4;
/// What the rows look like: their columns, as this program's schema has them.
const FORMAT: u32 = 1;

/// Why a stream is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It ended before its end.
    #[error("the snapshot broke off")]
    BrokenOff,
    /// Damaged on its way.
    #[error("a block of the snapshot is damaged: its checksum differs")]
    Checksum,
    /// Of a program with another schema.
    #[error(
        "the snapshot has format {0}, and this program takes {FORMAT}; give both nodes the same image"
    )]
    Format(u32),
    /// The checksum fits and the content does not.
    #[error("the snapshot is malformed: {0}")]
    Malformed(&'static str),
}

/// Where the cut was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    format: u32,
    /// The whole position of the cut.
    pub position: SlotPosition,
}

/// Some rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How many.
    pub count: u32,
    /// The key of the last one.
    pub last_key: Bytes,
    /// The rows, as the store has them.
    pub tuples: Bytes,
}

/// One piece of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Begins a stream.
    Head(Head),
    /// Rows, ordered by key.
    Rows(Rows),
    /// What the slot remembers of requests, as the store has it.
    Dedup(Bytes),
    /// Ends a stream.
    End {
        /// How many rows there were.
        rows: u64,
    },
}

impl Head {
    /// Of a cut at this position.
    pub fn new(position: SlotPosition) -> Self {
        Self {
            format: FORMAT,
            position,
        }
    }
}

impl Block {
    /// The block as it travels.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u8(self.kind());
        bytes.put_u32(0);
        bytes.put_u64(0);
        match self {
            Self::Head(head) => {
                let text = serde_json::to_vec(head).expect("a head has only keys that are text");
                bytes.put_slice(&text);
            }
            Self::Rows(rows) => {
                let length = u16::try_from(rows.last_key.len()).expect("a key has a limit");
                bytes.put_u32(rows.count);
                bytes.put_u16(length);
                bytes.put_slice(&rows.last_key);
                bytes.put_slice(&rows.tuples);
            }
            Self::Dedup(tuples) => bytes.put_slice(tuples),
            Self::End { rows } => bytes.put_u64(*rows),
        }
        let payload = bytes.len() - BLOCK_HEADER_BYTES;
        let length = u32::try_from(payload).expect("a block has a limit");
        let sum = checksum(self.kind(), &bytes[BLOCK_HEADER_BYTES..]);
        bytes[1..5].copy_from_slice(&length.to_be_bytes());
        bytes[5..BLOCK_HEADER_BYTES].copy_from_slice(&sum.to_be_bytes());
        bytes.freeze()
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Head(_) => HEAD,
            Self::Rows(_) => ROWS,
            Self::Dedup(_) => DEDUP,
            Self::End { .. } => END,
        }
    }

    fn decode(kind: u8, mut payload: Bytes) -> Result<Self, SnapshotError> {
        match kind {
            HEAD => {
                let head: Head = serde_json::from_slice(&payload)
                    .map_err(|_| SnapshotError::Malformed("the head does not parse"))?;
                if head.format == FORMAT {
                    Ok(Self::Head(head))
                } else {
                    Err(SnapshotError::Format(head.format))
                }
            }
            ROWS => {
                const SHORT: SnapshotError = SnapshotError::Malformed("rows are cut short");
                let count = payload.try_get_u32().map_err(|_| SHORT)?;
                let length = usize::from(payload.try_get_u16().map_err(|_| SHORT)?);
                if length == 0 || length > KEY_BYTES_MAX || length > payload.len() {
                    return Err(SHORT);
                }
                let last_key = payload.split_to(length);
                Ok(Self::Rows(Rows {
                    count,
                    last_key,
                    tuples: payload,
                }))
            }
            DEDUP => Ok(Self::Dedup(payload)),
            END if payload.len() == 8 => Ok(Self::End {
                rows: payload.get_u64(),
            }),
            _ => Err(SnapshotError::Malformed("there is no such block")),
        }
    }
}

fn checksum(kind: u8, payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, u64::from(kind))
}

/// Takes a stream apart, piece by piece.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    rows: u64,
    begun: bool,
    ended: bool,
}

impl Decoder {
    /// Takes the next piece, of any size.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next block that is there whole; none when more pieces are needed.
    pub fn next_block(&mut self) -> Result<Option<Block>, SnapshotError> {
        if self.buffer.len() < BLOCK_HEADER_BYTES {
            return Ok(None);
        }
        let mut header = &self.buffer[..BLOCK_HEADER_BYTES];
        let (kind, length, sum) = (header.get_u8(), header.get_u32() as usize, header.get_u64());
        if length > PAYLOAD_BYTES_MAX {
            return Err(SnapshotError::Malformed("a block is longer than the limit"));
        }
        if self.buffer.len() < BLOCK_HEADER_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(BLOCK_HEADER_BYTES);
        let payload = self.buffer.split_to(length).freeze();
        if checksum(kind, &payload) != sum {
            return Err(SnapshotError::Checksum);
        }
        let block = Block::decode(kind, payload)?;
        self.check_order(&block)?;
        Ok(Some(block))
    }

    /// Whether the end has come. A stream without it was broken off.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    fn check_order(&mut self, block: &Block) -> Result<(), SnapshotError> {
        let is_head = matches!(block, Block::Head(_));
        if self.ended || is_head == self.begun {
            return Err(SnapshotError::Malformed("a block is out of its place"));
        }
        self.begun = true;
        match block {
            Block::Dedup(_) if self.rows > 0 => {
                return Err(SnapshotError::Malformed("a block is out of its place"));
            }
            Block::Head(_) | Block::Dedup(_) => {}
            Block::Rows(rows) => self.rows += u64::from(rows.count),
            Block::End { rows } if *rows == self.rows => self.ended = true,
            Block::End { .. } => {
                return Err(SnapshotError::Malformed("the end counts other rows"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks(rows: &[(Vec<u8>, Vec<u8>)]) -> Vec<Block> {
        let head = Block::Head(Head::new(SlotPosition::start()));
        let some = rows.iter().map(|(key, tuples)| {
            Block::Rows(Rows {
                count: 3,
                last_key: Bytes::copy_from_slice(key),
                tuples: Bytes::copy_from_slice(tuples),
            })
        });
        let end = Block::End {
            rows: 3 * rows.len() as u64,
        };
        let dedup = Block::Dedup(Bytes::from_static(b"some"));
        [head, dedup].into_iter().chain(some).chain([end]).collect()
    }

    fn encode(blocks: &[Block]) -> Vec<u8> {
        blocks.iter().flat_map(Block::encode).collect()
    }

    fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Block>, SnapshotError> {
        let mut decoder = Decoder::default();
        let mut blocks = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.push(piece);
            while let Some(block) = decoder.next_block()? {
                blocks.push(block);
            }
        }
        if decoder.has_ended() {
            Ok(blocks)
        } else {
            Err(SnapshotError::BrokenOff)
        }
    }

    fn rows() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        let key = prop::collection::vec(any::<u8>(), 1..50);
        prop::collection::vec((key, any::<Vec<u8>>()), 0..8)
    }

    proptest! {
        #[test]
        fn blocks_come_back_whatever_the_pieces(rows in rows(), piece in 1..200_usize) {
            let blocks = blocks(&rows);
            prop_assert_eq!(decode(&encode(&blocks), piece), Ok(blocks));
        }

        #[test]
        fn a_cut_is_always_seen(rows in rows(), cut in 1..300_usize) {
            let bytes = encode(&blocks(&rows));
            let left = bytes.len().saturating_sub(cut);
            prop_assert_eq!(decode(&bytes[..left], 64), Err(SnapshotError::BrokenOff));
        }

        #[test]
        fn a_changed_bit_is_always_seen(rows in rows(), place: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = encode(&blocks(&rows));
            let place = place.index(bytes.len());
            bytes[place] ^= 1_u8 << bit;
            prop_assert!(decode(&bytes, 4096).is_err());
        }

        #[test]
        fn anything_is_taken_apart_without_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes, 7);
        }
    }

    #[test]
    fn blocks_out_of_place_wrong_counts_and_other_formats_are_refused() {
        let rows = [(b"k".to_vec(), vec![1])];
        let whole = blocks(&rows);
        let two_heads = [whole[0].clone(), whole[0].clone()];
        let no_head = &whole[1..];
        let tail = [&whole[..], &whole[2..3]].concat();
        let late = [&whole[..3], &whole[1..2]].concat();
        let count = [&whole[..3], &[Block::End { rows: 2 }]].concat();
        for wrong in [&two_heads[..], no_head, &tail, &late, &count] {
            let refused = decode(&encode(wrong), 1_000);
            assert!(
                matches!(refused, Err(SnapshotError::Malformed(_))),
                "{refused:?}"
            );
        }
        let newer = Block::Head(Head {
            format: FORMAT + 1,
            position: SlotPosition::start(),
        });
        assert_eq!(
            decode(&newer.encode(), 1_000),
            Err(SnapshotError::Format(FORMAT + 1))
        );
        let mut long = vec![ROWS];
        long.extend(u32::MAX.to_be_bytes());
        long.extend([0; 8]);
        assert!(matches!(
            decode(&long, 64),
            Err(SnapshotError::Malformed(_))
        ));
    }
}
