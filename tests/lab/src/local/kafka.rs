//! Kafka as plain processes: every broker is a KRaft controller too.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::{self, Layout};
use crate::local::disks;
use crate::local::parts::{Part, log_file};
use crate::shell;

/// First client port; broker i listens on this + i.
pub const CLIENT_PORT: u16 = 19_092;
/// First controller port; controller i listens on this + i.
const CONTROLLER_PORT: u16 = 19_192;
/// The cluster's id: any 16 bytes in URL-safe base64 do.
const CLUSTER_ID: &str = "a3ZjbHVzdGVyLWxhYi0wMQ";
/// Heap of a broker; a test's load uses a third of it.
const HEAP_OPTION: &str = "-Xmx512m";
/// How long one question to a broker may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// No answer to the readiness question is larger; more is no Kafka.
const ANSWER_LIMIT_BYTES: usize = 1 << 20;

/// The addresses that clients start from.
pub fn bootstrap(brokers: u16) -> String {
    let addresses = (0..brokers).map(|broker| format!("127.0.0.1:{}", CLIENT_PORT + broker));
    addresses.collect::<Vec<_>>().join(",")
}

/// The processes of a cluster with so many brokers.
pub fn parts(layout: &Layout, jars: &Path, brokers: u16) -> Vec<Part> {
    (0..brokers)
        .map(|broker| part(layout, jars, broker))
        .collect()
}

/// A small disk of a broker, MiB: what a run of the suites writes, some times over.
const DISK_MIB: u32 = 384;

/// Writes a broker's properties and formats its storage.
pub fn prepare(layout: &Layout, part: &Part, brokers: u16, is_small: bool) -> Result<()> {
    let broker = part.ports[0] - CLIENT_PORT;
    disks::unmount_below(&part.cwd)?;
    cache::remove(&part.cwd)?;
    if is_small {
        disks::mount(&part.cwd, DISK_MIB)?;
    }
    let file = part.cwd.join("server.properties");
    cache::write(&file, properties(broker, brokers, &part.cwd.join("data")))?;
    let mut words: Vec<&str> = part.argv.iter().map(String::as_str).collect();
    words.truncate(words.len() - 2);
    let file = file.to_string_lossy();
    words.extend([
        "kafka.tools.StorageTool",
        "format",
        "-t",
        CLUSTER_ID,
        "-c",
        &file,
    ]);
    shell::run_logged(&mut shell::command(&words), &layout.log("kafka-format"))
        .context("cannot format Kafka's storage")
}

/// Whether the cluster works: the first broker knows a controller and all brokers.
pub fn answers(brokers: u16) -> bool {
    known_brokers(CLIENT_PORT).is_ok_and(|known| known == u32::from(brokers))
}

fn part(layout: &Layout, jars: &Path, broker: u16) -> Part {
    let name = format!("kafka-{broker}");
    let cwd = layout.run("local").join(&name);
    let class_path = format!("{}/*", jars.display());
    let properties = cwd.join("server.properties").display().to_string();
    // Quick start counts for more than peak speed: the first compiler only, and the JDK's shared class archive.
    let options = [
        "-XX:TieredStopAtLevel=1",
        "-Xshare:auto",
        "-XX:+UseSerialGC",
    ];
    let logging = "-Dorg.apache.logging.log4j.level=INFO";
    let start = [
        "java",
        HEAP_OPTION,
        options[0],
        options[1],
        options[2],
        logging,
        "-cp",
    ];
    let end = [class_path.as_str(), "kafka.Kafka", &properties];
    Part {
        argv: start
            .iter()
            .chain(&end)
            .map(|&word| word.to_owned())
            .collect(),
        env: BTreeMap::new(),
        log: log_file(layout, &name),
        ports: vec![CLIENT_PORT + broker, CONTROLLER_PORT + broker],
        cwd,
        name,
        pid: None,
        started_ticks: None,
    }
}

/// A broker that was killed is refused until its old session has ended: after 5 s here, not 9.
fn properties(broker: u16, brokers: u16, data: &Path) -> String {
    let voters = (0..brokers).map(|id| format!("{id}@127.0.0.1:{}", CONTROLLER_PORT + id));
    let voters = voters.collect::<Vec<_>>().join(",");
    let copies = brokers.min(3);
    let in_sync = copies.min(2);
    let client = CLIENT_PORT + broker;
    let controller = CONTROLLER_PORT + broker;
    format!(
        "process.roles=broker,controller\n\
         node.id={broker}\n\
         controller.quorum.voters={voters}\n\
         listeners=CLIENT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=CLIENT://127.0.0.1:{client}\n\
         listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         inter.broker.listener.name=CLIENT\n\
         controller.listener.names=CONTROLLER\n\
         log.dirs={data}\n\
         auto.create.topics.enable=false\n\
         unclean.leader.election.enable=false\n\
         default.replication.factor={copies}\n\
         min.insync.replicas={in_sync}\n\
         offsets.topic.replication.factor={copies}\n\
         transaction.state.log.replication.factor={copies}\n\
         transaction.state.log.min.isr={in_sync}\n\
         offsets.topic.num.partitions=5\n\
         transaction.state.log.num.partitions=5\n\
         group.initial.rebalance.delay.ms=0\n\
         broker.session.timeout.ms=5000\n\
         broker.heartbeat.interval.ms=1000\n",
        data = data.display()
    )
}

/// Asks a broker for the cluster's metadata; the number of brokers once a controller is elected.
fn known_brokers(port: u16) -> Result<u32> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(&metadata_request())?;
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    let size = usize::try_from(u32::from_be_bytes(size))?;
    anyhow::ensure!(
        size <= ANSWER_LIMIT_BYTES,
        "an answer of {size} bytes is none of Kafka's"
    );
    let mut answer = vec![0; size];
    stream.read_exact(&mut answer)?;
    brokers_of(&answer).context("the answer is malformed")
}

/// Metadata, version 1, of no topic, by a client without a name.
fn metadata_request() -> Vec<u8> {
    let body: [u8; 14] = [0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0];
    [&[0, 0, 0, 14], body.as_slice()].concat()
}

/// The brokers in a Metadata answer of version 1; none while no controller is elected.
fn brokers_of(answer: &[u8]) -> Option<u32> {
    let mut rest = answer.get(4..)?;
    let count = u32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
    for _ in 0..count {
        take(&mut rest, 4)?;
        take_string(&mut rest)?;
        take(&mut rest, 4)?;
        take_string(&mut rest)?;
    }
    let controller = i32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
    Some(if controller < 0 { 0 } else { count })
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = i16::from_be_bytes(take(rest, 2)?.try_into().ok()?);
    take(rest, usize::try_from(length).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(brokers: u8, controller: i32) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, brokers];
        for id in 0..brokers {
            bytes.extend([0, 0, 0, id, 0, 2, b'h', b'i', 0, 0, 1, 2, 0xff, 0xff]);
        }
        bytes.extend(controller.to_be_bytes());
        bytes.extend([0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn brokers_count_once_a_controller_is_known() {
        assert_eq!(brokers_of(&answer(3, 1)), Some(3));
        assert_eq!(brokers_of(&answer(3, -1)), Some(0));
        assert_eq!(brokers_of(&answer(3, 1)[..20]), None);
        assert_eq!(brokers_of(&[]), None);
    }

    #[test]
    fn one_broker_needs_no_second_copy() {
        let text = properties(0, 1, Path::new("/data"));
        assert!(text.contains("\ncontroller.quorum.voters=0@127.0.0.1:19192\n"));
        assert!(text.contains("\nmin.insync.replicas=1\n"));
        assert!(text.contains("\noffsets.topic.replication.factor=1\n"));
    }

    #[test]
    fn three_brokers_keep_three_copies_and_demand_two() {
        let text = properties(2, 3, Path::new("/data"));
        assert!(text.contains("0@127.0.0.1:19192,1@127.0.0.1:19193,2@127.0.0.1:19194"));
        assert!(text.contains("listeners=CLIENT://127.0.0.1:19094,CONTROLLER://127.0.0.1:19194"));
        assert!(text.contains("\nmin.insync.replicas=2\n"));
        assert_eq!(
            bootstrap(3),
            "127.0.0.1:19092,127.0.0.1:19093,127.0.0.1:19094"
        );
    }
}
