//! PostgreSQL's binary COPY format, as far as it takes to cut it between rows. Pure.
//!
//! A header, then rows (`i16` number of fields, each `i32` length, −1 for NULL, and its bytes), then −1 in place of a
//! number of fields. See "COPY: Binary Format" in PostgreSQL's manual.

use bytes::{Buf, Bytes, BytesMut};

use super::SnapshotError;

/// Begins a binary COPY: signature, no flags, no extension.
pub(in crate::store) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Ends one.
pub(in crate::store) const TRAILER: &[u8] = &(-1_i16).to_be_bytes();

const EXTENSION_AT: usize = 15;
/// Longest field, bytes: values have a limit far below.
const FIELD_BYTES_MAX: usize = 16 * 1_048_576;

/// Takes the output of `COPY … TO STDOUT (FORMAT binary)` apart into rows.
#[derive(Debug, Default)]
pub(in crate::store) struct Tuples {
    buffer: BytesMut,
    begun: bool,
    ended: bool,
}

impl Tuples {
    /// Takes the next piece, of any size.
    pub(in crate::store) fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next row that is there whole, and its field number `key`; none when more pieces are needed, or after the end.
    pub(in crate::store) fn next_row(
        &mut self,
        key: usize,
    ) -> Result<Option<(Bytes, Bytes)>, SnapshotError> {
        if self.ended || !self.begin()? {
            return Ok(None);
        }
        let Some(fields) = self.buffer.first_chunk::<2>() else {
            return Ok(None);
        };
        let Ok(fields) = usize::try_from(i16::from_be_bytes(*fields)) else {
            self.ended = true;
            return Ok(None);
        };
        let mut at = 2;
        let mut key_at = None;
        for field in 0..fields {
            let Some(length) = self
                .buffer
                .get(at..)
                .and_then(|rest| rest.first_chunk::<4>())
            else {
                return Ok(None);
            };
            // NULL has length -1 and no bytes.
            let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
            if length > FIELD_BYTES_MAX {
                return Err(SnapshotError::Malformed("a field is longer than the limit"));
            }
            at += 4;
            if field == key {
                key_at = Some(at..at + length);
            }
            at += length;
        }
        if self.buffer.len() < at {
            return Ok(None);
        }
        let row = self.buffer.split_to(at).freeze();
        let key_at = key_at.ok_or(SnapshotError::Malformed("a row has too few fields"))?;
        let key = row.slice(key_at);
        Ok(Some((row, key)))
    }

    /// Whether the end has come.
    pub(in crate::store) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Passes over the header; false while it is not there whole.
    fn begin(&mut self) -> Result<bool, SnapshotError> {
        if self.begun {
            return Ok(true);
        }
        let Some(extension) = self
            .buffer
            .get(EXTENSION_AT..)
            .and_then(|rest| rest.first_chunk::<4>())
        else {
            return Ok(false);
        };
        if u32::from_be_bytes(*extension) != 0
            || self.buffer[..EXTENSION_AT] != HEADER[..EXTENSION_AT]
        {
            return Err(SnapshotError::Malformed(
                "PostgreSQL's copy begins otherwise",
            ));
        }
        self.buffer.advance(HEADER.len());
        self.begun = true;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn copy(rows: &[(&[u8], Option<&[u8]>)]) -> Vec<u8> {
        let mut bytes = HEADER.to_vec();
        for (key, value) in rows {
            bytes.put_i16(2);
            bytes.put_i32(i32::try_from(key.len()).expect("short"));
            bytes.put_slice(key);
            match value {
                Some(value) => {
                    bytes.put_i32(i32::try_from(value.len()).expect("short"));
                    bytes.put_slice(value);
                }
                None => bytes.put_i32(-1),
            }
        }
        bytes.put_slice(TRAILER);
        bytes
    }

    fn take(bytes: &[u8], piece: usize) -> Result<(Vec<u8>, Vec<Bytes>, bool), SnapshotError> {
        let mut tuples = Tuples::default();
        let (mut rows, mut keys) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            tuples.push(piece);
            while let Some((row, key)) = tuples.next_row(0)? {
                rows.extend_from_slice(&row);
                keys.push(key);
            }
        }
        Ok((rows, keys, tuples.has_ended()))
    }

    #[test]
    fn rows_are_cut_whatever_the_pieces() {
        let bytes = copy(&[(b"a", Some(b"1")), (b"bb", None), (b"c", Some(b""))]);
        for piece in 1..bytes.len() {
            let (rows, keys, ended) = take(&bytes, piece).expect("well-formed");
            assert_eq!(keys, [&b"a"[..], b"bb", b"c"]);
            assert_eq!(rows, bytes[HEADER.len()..bytes.len() - TRAILER.len()]);
            assert!(ended, "pieces of {piece}");
        }
        let (_, keys, ended) = take(&bytes[..bytes.len() - 2], 5).expect("not wrong so far");
        assert_eq!((keys.len(), ended), (3, false));
    }

    #[test]
    fn what_is_no_copy_is_refused() {
        let mut other = copy(&[]);
        other[3] = b'x';
        assert!(take(&other, 64).is_err());
        let mut extended = copy(&[]);
        extended[EXTENSION_AT + 3] = 1;
        assert!(take(&extended, 64).is_err());
        let mut long = HEADER.to_vec();
        long.put_i16(1);
        long.put_i32(i32::MAX);
        assert!(take(&long, 64).is_err());
        let mut bare = HEADER.to_vec();
        bare.put_i16(0);
        assert!(take(&bare, 64).is_err(), "a row without its key");
    }
}
