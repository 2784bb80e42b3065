//! Leaders of Kafka's partitions: who they are, and how they are moved while all brokers are well, as an administrator
//! does it to spread load. In Kafka's own words, over one short connection for each question.
//!
//! A leader moves in two steps: another order of a partition's replicas, of which the first is the preferred one, and the
//! election of preferred leaders.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Longest wait for one answer, and what Kafka is given for its work.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const WORK_MS: i32 = 8_000;
/// No answer about the topics of a test is larger.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Names of requests, and the versions that are spoken here.
const METADATA: (i16, i16) = (3, 1);
const ELECT_LEADERS: (i16, i16) = (43, 1);
const ALTER_REASSIGNMENTS: (i16, i16) = (45, 0);

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The broker that leads it; -1: none.
    pub leader: i32,
    /// The brokers that have it, the preferred leader first.
    pub replicas: Vec<i32>,
}

/// The partitions of a topic.
pub fn partitions(bootstrap: &str, topic: &str) -> Result<BTreeMap<i32, Partition>> {
    let mut request = header(METADATA);
    put_i32(&mut request, 1);
    put_string(&mut request, topic)?;
    let answer = ask(bootstrap, &request)?;
    parse(&answer).context("Kafka's metadata is malformed")
}

/// Gives each partition of a topic to the next one of its replicas; how many have another leader now.
pub fn move_leaders(bootstrap: &str, topic: &str) -> Result<usize> {
    let before = partitions(bootstrap, topic)?;
    let mut moved = before.clone();
    for partition in moved.values_mut() {
        let replicas = &mut partition.replicas;
        if let Some(place) = replicas.iter().position(|id| *id == partition.leader) {
            replicas.rotate_left(place + 1);
        }
    }
    ask(bootstrap, &reassign(topic, &moved)?)?;
    ask(bootstrap, &elect(topic, &moved)?)?;
    let after = partitions(bootstrap, topic)?;
    let differs = |(id, partition): &(&i32, &Partition)| {
        after
            .get(*id)
            .is_some_and(|now| now.leader != partition.leader)
    };
    Ok(before.iter().filter(differs).count())
}

/// Asks the first broker that answers.
fn ask(bootstrap: &str, request: &[u8]) -> Result<Vec<u8>> {
    let mut last = anyhow::anyhow!("no broker is named");
    for address in bootstrap.split(',') {
        match ask_one(address, request) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error.context(address.to_owned()),
        }
    }
    Err(last)
}

fn ask_one(address: &str, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(&u32::try_from(request.len())?.to_be_bytes())?;
    stream.write_all(request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length))?;
    ensure!(length <= ANSWER_BYTES_MAX, "an answer of {length} bytes");
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// Name and version, correlation 1, and no client id.
fn header((name, version): (i16, i16)) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(name.to_be_bytes());
    bytes.extend(version.to_be_bytes());
    bytes.extend(1_i32.to_be_bytes());
    bytes.extend((-1_i16).to_be_bytes());
    bytes
}

/// In the newer form, where lengths are one more than they say, and everything ends with its (no) tags.
fn reassign(topic: &str, partitions: &BTreeMap<i32, Partition>) -> Result<Vec<u8>> {
    const NO_TAGS: u8 = 0;
    let mut bytes = header(ALTER_REASSIGNMENTS);
    bytes.push(NO_TAGS);
    put_i32(&mut bytes, WORK_MS);
    put_compact_length(&mut bytes, 1)?;
    put_compact_length(&mut bytes, topic.len())?;
    bytes.extend(topic.as_bytes());
    put_compact_length(&mut bytes, partitions.len())?;
    for (id, partition) in partitions {
        put_i32(&mut bytes, *id);
        put_compact_length(&mut bytes, partition.replicas.len())?;
        for replica in &partition.replicas {
            put_i32(&mut bytes, *replica);
        }
        bytes.push(NO_TAGS);
    }
    bytes.extend([NO_TAGS, NO_TAGS]);
    Ok(bytes)
}

fn elect(topic: &str, partitions: &BTreeMap<i32, Partition>) -> Result<Vec<u8>> {
    const PREFERRED: u8 = 0;
    let mut bytes = header(ELECT_LEADERS);
    bytes.push(PREFERRED);
    put_i32(&mut bytes, 1);
    put_string(&mut bytes, topic)?;
    put_i32(&mut bytes, i32::try_from(partitions.len())?);
    for id in partitions.keys() {
        put_i32(&mut bytes, *id);
    }
    put_i32(&mut bytes, WORK_MS);
    Ok(bytes)
}

fn put_i32(bytes: &mut Vec<u8>, number: i32) {
    bytes.extend(number.to_be_bytes());
}

fn put_string(bytes: &mut Vec<u8>, text: &str) -> Result<()> {
    bytes.extend(i16::try_from(text.len())?.to_be_bytes());
    bytes.extend(text.as_bytes());
    Ok(())
}

/// Seven bits a byte, the lowest first.
fn put_compact_length(bytes: &mut Vec<u8>, length: usize) -> Result<()> {
    let mut rest = u32::try_from(length)? + 1;
    loop {
        let low = u8::try_from(rest & 0x7f)?;
        rest >>= 7;
        if rest == 0 {
            bytes.push(low);
            return Ok(());
        }
        bytes.push(low | 0x80);
    }
}

/// A Metadata answer about one topic, behind its correlation.
fn parse(answer: &[u8]) -> Option<BTreeMap<i32, Partition>> {
    let mut rest = answer.get(4..)?;
    for _ in 0..take_i32(&mut rest)? {
        take_i32(&mut rest)?;
        take_string(&mut rest)?;
        take_i32(&mut rest)?;
        take_string(&mut rest)?;
    }
    let (_controller, _topics) = (take_i32(&mut rest)?, take_i32(&mut rest)?);
    take(&mut rest, 2)?;
    take_string(&mut rest)?;
    take(&mut rest, 1)?;
    let mut partitions = BTreeMap::new();
    for _ in 0..take_i32(&mut rest)? {
        take(&mut rest, 2)?;
        let (id, leader) = (take_i32(&mut rest)?, take_i32(&mut rest)?);
        let replicas = take_numbers(&mut rest)?;
        take_numbers(&mut rest)?;
        partitions.insert(id, Partition { leader, replicas });
    }
    Some(partitions)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn take_i32(rest: &mut &[u8]) -> Option<i32> {
    Some(i32::from_be_bytes(take(rest, 4)?.try_into().ok()?))
}

fn take_numbers(rest: &mut &[u8]) -> Option<Vec<i32>> {
    (0..take_i32(rest)?).map(|_| take_i32(rest)).collect()
}

/// A text, or none.
fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = i16::from_be_bytes(take(rest, 2)?.try_into().ok()?);
    take(rest, usize::try_from(length).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_the_newer_form() {
        let encoded = |length| {
            let mut bytes = Vec::new();
            put_compact_length(&mut bytes, length).expect("it is short");
            bytes
        };
        assert_eq!(encoded(0), [1]);
        assert_eq!(encoded(126), [127]);
        assert_eq!(encoded(127), [0x80, 1]);
        assert_eq!(encoded(299), [0xac, 2]);
    }

    #[test]
    fn an_answer_is_taken_apart_or_refused() {
        let mut answer = vec![0, 0, 0, 1];
        // One broker, controller 0, one topic.
        answer.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 1, b'h', 0, 0, 0, 9, 0xff, 0xff]);
        answer.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, b't', 0]);
        // Two partitions: 0 led by 2 of (2, 1), 1 without a leader of (1).
        answer.extend([0, 0, 0, 2]);
        answer.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        answer.extend([0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2]);
        answer.extend([0, 5, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
        answer.extend([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]);
        let two = parse(&answer).expect("it is well-formed");
        let of = |leader, replicas: &[i32]| Partition {
            leader,
            replicas: replicas.to_vec(),
        };
        assert_eq!(
            two,
            BTreeMap::from([(0, of(2, &[2, 1])), (1, of(-1, &[1]))])
        );
        for length in 0..answer.len() {
            assert_eq!(parse(&answer[..length]), None, "cut at {length}");
        }
    }
}
