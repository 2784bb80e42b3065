//! Key → slot. Never changes: a cluster's data is placed by it for life.
//!
//! The slot of a key is `xxh3_64` (seed 0) of the hashed part of the key, modulo the number of slots. The hashed part is what
//! stands between the first `{` and the next `}` when that is not empty (a hash tag, as in Redis Cluster: keys with the same
//! tag share a slot), else the whole key.

use xxhash_rust::xxh3::xxh3_64;

use crate::ids::SlotId;

/// The slot of `key` in a cluster of `slots` slots.
///
/// # Panics
/// When `slots` is 0; the custom resource refuses that.
pub fn slot_of_key(key: &[u8], slots: u32) -> SlotId {
    assert!(slots > 0, "a cluster has at least one slot");
    let slot = xxh3_64(hashed_part(key)) % u64::from(slots);
    SlotId(u32::try_from(slot).expect("a remainder of a u32 fits into a u32"))
}

fn hashed_part(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&b| b == b'{') else {
        return key;
    };
    let tag = &key[open + 1..];
    match tag.iter().position(|&b| b == b'}') {
        Some(length) if length > 0 => &tag[..length],
        _ => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_vectors() {
        for (key, slots, slot) in GOLDEN {
            assert_eq!(
                slot_of_key(key.as_bytes(), slots),
                SlotId(slot),
                "{key:?} of {slots}"
            );
        }
    }

    /// Worked out by another implementation of `xxh3_64`. A change here loses data on every cluster that exists.
    const GOLDEN: [(&str, u32, u32); 8] = [
        ("", 16, 2),
        ("a", 16, 15),
        ("user:1", 16, 1),
        ("user:2", 16, 2),
        ("user:1", 64, 1),
        ("\u{1F600}", 64, 14),
        ("{user:1}:name", 64, 1),
        ("{}user", 64, 30),
    ];

    #[test]
    fn keys_with_the_same_tag_share_a_slot() {
        for slots in [1, 4, 7, 16, 128] {
            let slot = slot_of_key(b"{order:7}", slots);
            assert_eq!(slot_of_key(b"a{order:7}b", slots), slot);
            assert_eq!(slot_of_key(b"{order:7}{x}", slots), slot);
            assert_eq!(slot_of_key(b"order:7", slots), slot);
        }
    }

    #[test]
    fn an_empty_or_open_tag_is_no_tag() {
        assert_eq!(hashed_part(b"{}a"), b"{}a");
        assert_eq!(hashed_part(b"{a"), b"{a");
        assert_eq!(hashed_part(b"a}b{c}"), b"c");
        assert_eq!(hashed_part(b"{{a}}"), b"{a");
    }
}
