//! The stream of a slot's rows between nodes. Pure.
//!
//! Numbers are big-endian. A row: length of the key (4 bytes), length of the value (4), version (8), key, value. The end:
//! 0xffff_ffff, then the number of rows (8). A stream without its end, or with another count, was broken off.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kvcluster_crds::Offset;

use crate::effect::{KEY_BYTES_MAX, VALUE_BYTES_MAX, Versioned};
use crate::store::Row;

const END: u32 = u32::MAX;
const ROW_HEADER_BYTES: usize = 16;
const END_BYTES: usize = 12;

/// Why a stream is not whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    /// It ended before its end mark.
    #[error("the stream of rows broke off")]
    BrokenOff,
    /// The end mark counts other than what came.
    #[error("the stream of rows says {said} rows and had {had}")]
    Count {
        /// As the end mark says.
        said: u64,
        /// As they were counted.
        had: u64,
    },
    /// A length over the limit, or bytes after the end.
    #[error("the stream of rows is malformed")]
    Malformed,
}

/// Appends a row.
pub(super) fn encode_row(out: &mut BytesMut, (key, versioned): &Row) {
    let length = |bytes: &Bytes| u32::try_from(bytes.len()).expect("keys and values have limits");
    out.put_u32(length(key));
    out.put_u32(length(&versioned.value));
    out.put_i64(versioned.version.0);
    out.extend_from_slice(key);
    out.extend_from_slice(&versioned.value);
}

/// Appends the end.
pub(super) fn encode_end(out: &mut BytesMut, rows: u64) {
    out.put_u32(END);
    out.put_u64(rows);
}

/// Takes a stream apart, piece by piece.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: BytesMut,
    rows: u64,
    ended: bool,
}

impl Decoder {
    /// Takes the next piece, of any size.
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next row that is there whole; none when more pieces are needed, or after the end.
    pub(super) fn next_row(&mut self) -> Result<Option<Row>, FrameError> {
        if self.ended {
            return if self.buffer.is_empty() {
                Ok(None)
            } else {
                Err(FrameError::Malformed)
            };
        }
        let Some(first) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let key_length = u32::from_be_bytes(*first);
        if key_length == END {
            return self.take_end().map(|()| None);
        }
        if self.buffer.len() < ROW_HEADER_BYTES {
            return Ok(None);
        }
        let mut header = &self.buffer[4..ROW_HEADER_BYTES];
        let (value_length, version) = (header.get_u32(), header.get_i64());
        let (key_length, value_length) = (key_length as usize, value_length as usize);
        if key_length > KEY_BYTES_MAX || value_length > VALUE_BYTES_MAX {
            return Err(FrameError::Malformed);
        }
        if self.buffer.len() < ROW_HEADER_BYTES + key_length + value_length {
            return Ok(None);
        }
        self.buffer.advance(ROW_HEADER_BYTES);
        let key = self.buffer.split_to(key_length).freeze();
        let value = self.buffer.split_to(value_length).freeze();
        self.rows += 1;
        Ok(Some((
            key,
            Versioned {
                value,
                version: Offset(version),
            },
        )))
    }

    /// To be asked when no more pieces come.
    pub(super) fn finish(&self) -> Result<(), FrameError> {
        match (self.ended, self.buffer.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => Err(FrameError::Malformed),
            (false, _) => Err(FrameError::BrokenOff),
        }
    }

    fn take_end(&mut self) -> Result<(), FrameError> {
        if self.buffer.len() < END_BYTES {
            return Ok(());
        }
        self.buffer.advance(4);
        let said = self.buffer.get_u64();
        self.ended = true;
        let had = self.rows;
        if said == had {
            Ok(())
        } else {
            Err(FrameError::Count { said, had })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let row = (
            prop::collection::vec(any::<u8>(), 1..40),
            any::<Vec<u8>>(),
            0..i64::MAX,
        );
        let row = row.prop_map(|(key, value, version)| {
            (
                Bytes::from(key),
                Versioned {
                    value: Bytes::from(value),
                    version: Offset(version),
                },
            )
        });
        prop::collection::vec(row, 0..20)
    }

    fn encode(rows: &[Row], said: u64) -> BytesMut {
        let mut bytes = BytesMut::new();
        for row in rows {
            encode_row(&mut bytes, row);
        }
        encode_end(&mut bytes, said);
        bytes
    }

    fn decode(bytes: &[u8], piece: usize) -> Result<Vec<Row>, FrameError> {
        let mut decoder = Decoder::default();
        let mut rows = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.push(piece);
            while let Some(row) = decoder.next_row()? {
                rows.push(row);
            }
        }
        decoder.finish().map(|()| rows)
    }

    proptest! {
        #[test]
        fn rows_come_back_whatever_the_pieces(rows in rows(), piece in 1..100_usize) {
            let bytes = encode(&rows, rows.len() as u64);
            prop_assert_eq!(decode(&bytes, piece), Ok(rows));
        }

        #[test]
        fn a_cut_is_always_seen(rows in rows(), cut in 1..200_usize) {
            let bytes = encode(&rows, rows.len() as u64);
            let cut = cut.min(bytes.len());
            let answer = decode(&bytes[..bytes.len() - cut], 64);
            prop_assert_eq!(answer, Err(FrameError::BrokenOff));
        }

        #[test]
        fn anything_is_taken_apart_without_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes, 7);
        }
    }

    #[test]
    fn a_wrong_count_lengths_over_the_limit_and_a_tail_are_refused() {
        let row = (
            Bytes::from("k"),
            Versioned {
                value: Bytes::from("v"),
                version: Offset(1),
            },
        );
        let bytes = encode(std::slice::from_ref(&row), 2);
        assert_eq!(
            decode(&bytes, 5),
            Err(FrameError::Count { said: 2, had: 1 })
        );
        let mut long = vec![0, 0, 0x10, 0];
        long.extend([0; 12]);
        assert_eq!(decode(&long, 16), Err(FrameError::Malformed));
        let mut tail = encode(&[row], 1);
        tail.put_u8(0);
        assert_eq!(decode(&tail, 64), Err(FrameError::Malformed));
    }
}
