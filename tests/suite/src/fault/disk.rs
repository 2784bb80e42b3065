//! Full disks of brokers and of PostgreSQL, while clients of the fault's own write new keys: so that the service needs room.
//!
//! Each answer must be one of the contract: a refusal says whether the write took effect. What was acknowledged must be read
//! again when there is room. A broker ends when it cannot write, PostgreSQL may: they are started again, as whoever makes
//! room does.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Done, Plan};
use crate::http::{self, Connection};
use crate::lab::{self, Lab};
use crate::load::{Outcome, judge, put_target};
use crate::{check, kafka, poll};

/// Clients that write, and the pause of each between two writes: a few hundred rows per second, many pages of PostgreSQL's.
const WRITERS: usize = 4;
const WRITE_PAUSE: Duration = Duration::from_millis(15);
/// Bytes of a value.
const VALUE_BYTES: usize = 1_000;
/// Longest that such a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest time until the services answer again, once there is room: a Kafka that was killed takes up to 12 s.
const RETURN_LIMIT: Duration = Duration::from_mins(1);
/// Longest time until an acknowledged write can be read again.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// What the clients were answered.
#[derive(Default)]
struct Answers {
    acknowledged: Vec<(String, String)>,
    refused: usize,
    unknown: usize,
}

/// Fills the disks of `parts` for the time of the plan.
pub(super) fn fill(lab: &Lab, parts: &[String], plan: &Plan) -> Result<Done> {
    let urls = lab.urls()?;
    let stop = AtomicBool::new(false);
    let mut stopped = Vec::new();
    let answers = thread::scope(|scope| -> Result<Answers> {
        let write = |writer| write(&urls, plan.seed, writer, &stop);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || write(writer)))
            .collect();
        let held = parts.iter().try_for_each(|part| lab::fill(part, false));
        if held.is_ok() {
            thread::sleep(plan.held);
            stopped = troubled(lab, parts);
        }
        // Whatever went wrong on the way, there is room again.
        let room = parts.iter().map(|part| lab::fill(part, true));
        let room = room.collect::<Vec<_>>().into_iter().collect::<Result<()>>();
        stop.store(true, Ordering::Relaxed);
        let mut all = Answers::default();
        for writer in writers {
            let answers = writer.join().ok().context("a client panicked")??;
            all.acknowledged.extend(answers.acknowledged);
            all.refused += answers.refused;
            all.unknown += answers.unknown;
        }
        held.and(room).map(|()| all)
    })?;
    bring_back(lab, parts)?;
    for (key, value) in &answers.acknowledged {
        expect(&urls, key, value)?;
    }
    let Answers {
        acknowledged,
        refused,
        unknown,
    } = answers;
    Ok(Done {
        target: parts.join(", "),
        evidence: format!(
            "{} in trouble; of writes {} acknowledged and read again, {refused} refused, {unknown} unknown",
            if stopped.is_empty() {
                "nobody".to_owned()
            } else {
                stopped.join(", ")
            },
            acknowledged.len()
        ),
        fired: !stopped.is_empty(),
    })
}

/// Writes new keys until it is told to stop.
fn write(urls: &[String], seed: u64, writer: usize, stop: &AtomicBool) -> Result<Answers> {
    let mut answers = Answers::default();
    let mut rng = fastrand::Rng::with_seed(seed ^ writer as u64);
    let mut connection = None;
    for number in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep(WRITE_PAUSE);
        let url = &urls[(writer + number) % urls.len()];
        let open = || Connection::open_within(url, PATIENCE).ok();
        let Some(mut usable) = connection.take().or_else(open) else {
            continue;
        };
        let key = format!("disk{seed}.{writer}.{number}");
        let value: String = (0..VALUE_BYTES).map(|_| rng.alphanumeric()).collect();
        match judge(usable.request("PUT", &put_target(&key, &value), &[])) {
            Outcome::Acknowledged => answers.acknowledged.push((key, value)),
            Outcome::None(_) => answers.refused += 1,
            Outcome::Unknown(_) => answers.unknown += 1,
            Outcome::Wrong(what) => bail!("PUT {key}: {what}"),
        }
        connection = Some(usable).filter(Connection::is_usable);
    }
    Ok(answers)
}

/// Who shows that a disk is full: brokers that ended, and nodes whose PostgreSQL takes no flush.
fn troubled(lab: &Lab, parts: &[String]) -> Vec<String> {
    let brokers = addresses(lab).into_iter().enumerate();
    let ended = brokers
        .map(|(id, address)| (format!("kafka-{id}"), address))
        .filter(|(name, address)| parts.contains(name) && TcpStream::connect(address).is_err())
        .map(|(name, _)| name);
    let is_away = |node: &&lab::Node| node.status().is_ok_and(|at| !at.postgres_connected);
    let nodes = lab
        .nodes
        .iter()
        .filter(|_| parts.contains(&"postgres".to_owned()));
    let nodes = nodes
        .filter(is_away)
        .map(|node| format!("node-{}", node.id));
    ended.chain(nodes).collect()
}

fn addresses(lab: &Lab) -> Vec<String> {
    let bootstrap = lab.kafka().unwrap_or_default();
    bootstrap.split(',').map(str::to_owned).collect()
}

/// Starts what has ended, until everything answers. One that is just ending still runs at the first look.
fn bring_back(lab: &Lab, parts: &[String]) -> Result<()> {
    poll::until(RETURN_LIMIT, "Kafka and PostgreSQL with room", || {
        parts.iter().try_for_each(|part| lab::start(part))?;
        for address in addresses(lab) {
            TcpStream::connect(&address).with_context(|| address.clone())?;
        }
        let partitions = kafka::partitions(lab.kafka()?, &lab.names().log_topic())?;
        ensure!(
            partitions.values().all(|partition| partition.leader >= 0),
            "partitions without a leader: {partitions:?}"
        );
        check::query(lab.postgres()?, "SELECT 1")?;
        Ok(Some(()))
    })
}

/// Waits until a node answers for a key, which must be with that value.
fn expect(urls: &[String], key: &str, value: &str) -> Result<()> {
    let url = &urls[key.len() % urls.len()];
    let answer = poll::until(READ_LIMIT, "an answer for an acknowledged write", || {
        let answer = http::once(url, "GET", &format!("/key/{key}"))?;
        ensure!(matches!(answer.status, 200 | 404), "{}", answer.text());
        Ok(Some(answer))
    })?;
    ensure!(
        answer.status == 200 && answer.text() == value,
        "{key} was acknowledged, and GET gave {}",
        answer.status
    );
    Ok(())
}
