use proptest::prelude::*;

use super::*;

fn samples() -> Vec<Record> {
    let log_id = LogId(0x1122_3344_5566_7788);
    let (epoch, incarnation) = (Epoch(3), Incarnation(0xaabb_ccdd_eeff_0011));
    let effects = vec![
        Effect::Put {
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"value"),
        },
        Effect::Delete {
            key: Bytes::from_static(b"gone"),
        },
    ];
    let bodies = [
        Body::Claim {
            epoch,
            node: NodeId(2),
            incarnation,
            based_on: None,
            lease_ms: 600,
        },
        Body::Command {
            epoch,
            incarnation,
            seq: 7,
            time_ms: 0x0102_0304_0506_0708,
            idempotency: None,
            effects: effects.clone(),
        },
        Body::Command {
            epoch,
            incarnation,
            seq: 10,
            time_ms: 11,
            idempotency: Some(Idempotency {
                key: Bytes::from_static(b"request"),
                fingerprint: 0xf0f1_f2f3_f4f5_f6f7,
            }),
            effects,
        },
        Body::Renew {
            epoch,
            incarnation,
            seq: 8,
        },
        Body::Release {
            epoch,
            incarnation,
            seq: 9,
            to: NodeId(1),
        },
    ];
    bodies
        .into_iter()
        .map(|body| Record { log_id, body })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("text takes everything");
        text
    })
}

/// A change here makes the logs of every cluster that exists unreadable.
#[test]
fn golden_bytes() {
    let written: Vec<_> = samples()
        .iter()
        .map(|record| hex(&record.encode()))
        .collect();
    assert_eq!(written, GOLDEN);
}

const GOLDEN: [&str; 5] = [
    "4b564c52018d291a982215b4ed0111223344556677880000000000000003aabbccddeeff001100000002ffffffffffffffff00000258",
    "4b564c52019a8f2819412e71ef0211223344556677880000000000000003aabbccddeeff001100000000000000070102030405060708000000000201000000036b65790000000576616c75650200000004676f6e65",
    "4b564c5201aebcd58b12f1fdbd0211223344556677880000000000000003aabbccddeeff0011000000000000000a000000000000000b0772657175657374f0f1f2f3f4f5f6f70000000201000000036b65790000000576616c75650200000004676f6e65",
    "4b564c5201fd5da02918cc3b000311223344556677880000000000000003aabbccddeeff00110000000000000008",
    "4b564c52019a6f6cda77e9f92d0411223344556677880000000000000003aabbccddeeff0011000000000000000900000001",
];

#[test]
fn damage_of_any_byte_is_seen() {
    for record in samples() {
        let bytes = record.encode();
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.to_vec();
                damaged[place] ^= 1 << bit;
                let answer = Record::decode(&damaged.into());
                match place {
                    0..4 => assert_eq!(answer, Err(DecodeError::Foreign)),
                    4 => assert!(
                        matches!(answer, Err(DecodeError::TooNew(_) | DecodeError::Checksum)),
                        "{answer:?}"
                    ),
                    _ => assert_eq!(answer, Err(DecodeError::Checksum), "byte {place}"),
                }
            }
        }
    }
}

#[test]
fn a_cut_anywhere_is_seen() {
    for record in samples() {
        let bytes = record.encode();
        for length in 0..bytes.len() {
            assert!(
                Record::decode(&bytes.slice(..length)).is_err(),
                "cut at {length}"
            );
        }
    }
}

/// Bytes whose checksum is right and whose content is what the test says.
fn sealed(body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_slice(MAGIC);
    bytes.put_u8(FORMAT);
    bytes.put_u64(xxh3_64_with_seed(body, u64::from(FORMAT)));
    bytes.put_slice(body);
    bytes.freeze()
}

fn command_with(effects: &[u8]) -> Bytes {
    let mut body = vec![KIND_COMMAND];
    body.extend_from_slice(&[0; 41]);
    body.extend_from_slice(effects);
    sealed(&body)
}

#[test]
fn what_cannot_be_is_refused_and_allocates_nothing() {
    let put = |key: usize, value: usize| {
        let mut effects = vec![0, 0, 0, 1, EFFECT_PUT];
        effects.extend_from_slice(&u32::try_from(key).expect("small").to_be_bytes());
        effects.resize(effects.len() + key, b'k');
        effects.extend_from_slice(&u32::try_from(value).expect("small").to_be_bytes());
        effects.resize(effects.len() + value, b'v');
        Record::decode(&command_with(&effects))
    };
    assert!(
        put(KEY_BYTES_MAX, VALUE_BYTES_MAX).is_ok(),
        "the limits themselves are allowed"
    );
    assert!(matches!(
        put(KEY_BYTES_MAX + 1, 0),
        Err(DecodeError::Malformed(_))
    ));
    assert!(matches!(
        put(1, VALUE_BYTES_MAX + 1),
        Err(DecodeError::Malformed(_))
    ));
    assert!(matches!(put(0, 1), Err(DecodeError::Malformed(_))));
    let many = command_with(&[0xff, 0xff, 0xff, 0xff, EFFECT_PUT]);
    assert_eq!(Record::decode(&many), Err(DecodeError::Truncated));
    let named = |length: u8| {
        let mut body = vec![KIND_COMMAND];
        body.extend_from_slice(&[0; 40]);
        body.push(length);
        body.resize(body.len() + usize::from(length), b'i');
        body.extend_from_slice(&[0; 12]);
        Record::decode(&sealed(&body))
    };
    assert!(named(128).is_ok(), "the limit itself is allowed");
    assert!(matches!(named(129), Err(DecodeError::Malformed(_))));
    let kind = sealed(&[99; 40]);
    assert!(matches!(
        Record::decode(&kind),
        Err(DecodeError::Malformed(_))
    ));
    let mut longer = vec![KIND_RENEW];
    longer.extend_from_slice(&[0; 33]);
    assert!(matches!(
        Record::decode(&sealed(&longer)),
        Err(DecodeError::Malformed(_))
    ));
}

#[test]
fn a_newer_format_is_named_and_no_foreign_record() {
    let mut bytes = samples()[0].encode().to_vec();
    bytes[4] = FORMAT + 1;
    assert_eq!(
        Entry::read(&bytes.into()),
        Err(DecodeError::TooNew(FORMAT + 1))
    );
    assert_eq!(Entry::read(&Bytes::new()), Ok(Entry::Foreign));
    assert_eq!(
        Entry::read(&Bytes::from_static(b"hello")),
        Ok(Entry::Foreign)
    );
}

#[test]
fn the_largest_put_fits_into_the_largest_record() {
    let effect = Effect::Put {
        key: vec![b'k'; KEY_BYTES_MAX].into(),
        value: vec![b'v'; VALUE_BYTES_MAX].into(),
    };
    let (epoch, incarnation) = (Epoch(1), Incarnation(1));
    let body = Body::Command {
        epoch,
        incarnation,
        seq: 1,
        time_ms: u64::MAX,
        idempotency: Some(Idempotency {
            key: vec![b'i'; IDEMPOTENCY_KEY_BYTES_MAX].into(),
            fingerprint: u64::MAX,
        }),
        effects: vec![effect],
    };
    let bytes = Record {
        log_id: LogId(1),
        body,
    }
    .encode();
    assert!(bytes.len() <= RECORD_BYTES_MAX, "{}", bytes.len());
}

fn any_effect() -> impl Strategy<Value = Effect> {
    let bytes = |from, to| prop::collection::vec(any::<u8>(), from..to).prop_map(Bytes::from);
    prop_oneof![
        (bytes(1, 40), bytes(0, 200)).prop_map(|(key, value)| Effect::Put { key, value }),
        bytes(1, 40).prop_map(|key| Effect::Delete { key }),
    ]
}

fn any_idempotency() -> impl Strategy<Value = Idempotency> {
    let key = prop::collection::vec(any::<u8>(), 1..=IDEMPOTENCY_KEY_BYTES_MAX);
    (key, any::<u64>()).prop_map(|(key, fingerprint)| Idempotency {
        key: key.into(),
        fingerprint,
    })
}

fn any_record() -> impl Strategy<Value = Record> {
    let author = (any::<u64>(), any::<u64>()).prop_map(|(e, i)| (Epoch(e), Incarnation(i)));
    let body = prop_oneof![
        (
            author.clone(),
            any::<u32>(),
            prop::option::of(0..i64::MAX),
            any::<u32>()
        )
            .prop_map(
                |((epoch, incarnation), node, based_on, lease_ms)| Body::Claim {
                    epoch,
                    incarnation,
                    node: NodeId(node),
                    based_on: based_on.map(Offset),
                    lease_ms,
                }
            ),
        (
            author.clone(),
            any::<u64>(),
            any::<u64>(),
            prop::option::of(any_idempotency()),
            prop::collection::vec(any_effect(), 0..8)
        )
            .prop_map(
                |((epoch, incarnation), seq, time_ms, idempotency, effects)| Body::Command {
                    epoch,
                    incarnation,
                    seq,
                    time_ms,
                    idempotency,
                    effects
                }
            ),
        (author.clone(), any::<u64>()).prop_map(|((epoch, incarnation), seq)| Body::Renew {
            epoch,
            incarnation,
            seq
        }),
        (author, any::<u64>(), any::<u32>()).prop_map(|((epoch, incarnation), seq, to)| {
            Body::Release {
                epoch,
                incarnation,
                seq,
                to: NodeId(to),
            }
        }),
    ];
    (any::<u64>(), body).prop_map(|(log_id, body)| Record {
        log_id: LogId(log_id),
        body,
    })
}

proptest! {
    #[test]
    fn records_round_trip(record in any_record()) {
        prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Entry::read(&Bytes::from(bytes.clone()));
        let _ = Entry::read(&sealed(&bytes));
    }
}
