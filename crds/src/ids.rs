//! The numbers that identify things, each with a type of its own so that they cannot be mixed up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A store node. Ids start at 0 and are never reused within a cluster.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NodeId(pub u32);

/// A slot: one partition of the key space and of the log topic. `0 .. slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotId(pub u32);

/// Counts the leaders of one slot. 0 means that the slot never had a leader.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// The place of a record in its Kafka partition, ≥ 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

impl NodeId {
    /// The id as an index or a number for SQL.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl SlotId {
    /// The Kafka partition of the slot. Slots are at most 1,024, so the conversion cannot fail.
    pub fn partition(self) -> i32 {
        i32::try_from(self.0).expect("a slot number is at most 1,024")
    }

    /// The slot of a Kafka partition, if the number can be one.
    pub fn from_partition(partition: i32) -> Option<Self> {
        u32::try_from(partition).ok().map(Self)
    }

    /// The slot as an index into a table of slots.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Offset {
    /// The offset after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

macro_rules! display_number {
    ($($type:ident),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_number!(NodeId, SlotId, Epoch, Offset);

/// Text that is not sixteen hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected 16 hexadecimal digits, got {0:?}")]
pub struct ParseHexError(String);

macro_rules! hex_id {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(pub u64);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl FromStr for $type {
            type Err = ParseHexError;

            fn from_str(text: &str) -> Result<Self, ParseHexError> {
                let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
                u64::from_str_radix(text, 16)
                    .ok()
                    .filter(|_| digits)
                    .map(Self)
                    .ok_or_else(|| ParseHexError(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = ParseHexError;

            fn try_from(text: String) -> Result<Self, ParseHexError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.to_string()
            }
        }
    };
}

hex_id! {
    /// Names one life of the log topic: random, made by the operator at creation, in every record. Text form: 16 hex digits.
    LogId
}
hex_id! {
    /// Names one process start of a node: a restarted node is a stranger to its own earlier records. Text form: 16 hex digits.
    Incarnation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_ids_round_trip_as_sixteen_digits() {
        let id = LogId(0x00ab_cdef_0000_0001);
        assert_eq!(id.to_string(), "00abcdef00000001");
        assert_eq!("00abcdef00000001".parse(), Ok(id));
        assert_eq!(
            serde_json::to_string(&id).expect("serialises"),
            "\"00abcdef00000001\""
        );
    }

    #[test]
    fn hex_ids_refuse_other_text() {
        for text in [
            "",
            "1",
            "+0abcdef00000001",
            "00abcdef000000012",
            "00abcdef0000000g",
        ] {
            assert!(text.parse::<LogId>().is_err(), "{text:?} must be refused");
        }
    }
}
