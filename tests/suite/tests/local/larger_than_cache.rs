//! Values of far more bytes than the cache, and than a node may have resident: all are there, and memory stays bounded.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use kvcluster_crds::environment;
use kvcluster_suite::http::Connection;
use kvcluster_suite::lab;
use kvcluster_suite::load::{Outcome, judge, judge_as, put_target};

use crate::overload::{RESIDENT_MAX_MIB, resident_mib};
use crate::support::{empty_store, while_clients};

/// The cache of a node, a quarter of the default, and what a node has by default.
const CACHE_BYTES: usize = 16 << 20;
const CACHE_BYTES_USUAL: usize = 64 << 20;
/// The values: more than forty caches, and more than a node may have resident, so that one that kept them all would be seen.
const VALUE_BYTES: usize = 64 << 10;
const VALUES: usize = 42 * CACHE_BYTES / VALUE_BYTES;
/// Connections.
const CLIENTS: usize = 16;
/// Pause after a refusal, and between two looks at memory.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest that one value may be tried.
const VALUE_LIMIT: Duration = Duration::from_mins(1);

#[test]
fn values_of_forty_caches_are_there_and_memory_stays_bounded() -> Result<()> {
    empty_store()?;
    lab::restart_nodes_with(environment::CACHE_BYTES, &CACHE_BYTES.to_string())?;
    let lasted = write_and_read();
    let usual = CACHE_BYTES_USUAL.to_string();
    lab::restart_nodes_with(environment::CACHE_BYTES, &usual)?;
    lasted?;
    empty_store().map(drop)
}

fn write_and_read() -> Result<()> {
    let lab = empty_store()?;
    let urls = lab.urls()?;
    let pids: Vec<u32> = lab.nodes.iter().filter_map(|node| node.pid).collect();
    let phase = |act: Act| -> Result<(Vec<u64>, Duration)> {
        let begun = Instant::now();
        let next = AtomicUsize::new(0);
        let ended = AtomicUsize::new(0);
        let client = |number: usize, _: &AtomicBool| {
            let done = each_value(&urls, number, &next, act);
            ended.fetch_add(1, Ordering::Relaxed);
            done
        };
        let (peaks, _) = while_clients(CLIENTS, client, || watch(&pids, &ended))?;
        Ok((peaks, begun.elapsed()))
    };
    let (writing, wrote_in) = phase(write)?;
    let (reading, read_in) = phase(read)?;
    phase(delete)?;
    let mib = (VALUES * VALUE_BYTES) >> 20;
    println!(
        "larger than the cache: {VALUES} values, {mib} MiB, {} times the cache, written in {wrote_in:.0?} and read in {read_in:.0?}; \
         most resident memory of each node {writing:?} and {reading:?} MiB, limit {RESIDENT_MAX_MIB}",
        VALUES * VALUE_BYTES / CACHE_BYTES
    );
    let most = writing.into_iter().chain(reading).max().unwrap_or_default();
    ensure!(most <= RESIDENT_MAX_MIB, "a node had {most} MiB resident");
    Ok(())
}

/// Looks at the nodes' memory until all clients have ended; the most of each, mebibytes.
fn watch(pids: &[u32], ended: &AtomicUsize) -> Result<Vec<u64>> {
    let mut peaks = vec![0; pids.len()];
    while ended.load(Ordering::Relaxed) < CLIENTS {
        for (pid, peak) in pids.iter().zip(&mut peaks) {
            *peak = resident_mib(*pid)?.max(*peak);
        }
        thread::sleep(PAUSE);
    }
    Ok(peaks)
}

/// Does something with one value, and says what became of it.
type Act = fn(&mut Connection, usize) -> Outcome;

fn each_value(urls: &[String], client: usize, next: &AtomicUsize, act: Act) -> Result<()> {
    let mut connection: Option<Connection> = None;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= VALUES {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            ensure!(begun.elapsed() < VALUE_LIMIT, "value {number} is not done");
            let url = &urls[(client + number) % urls.len()];
            let mut open = match connection.take() {
                Some(open) => open,
                None => Connection::open(url).with_context(|| url.clone())?,
            };
            let outcome = act(&mut open, number);
            connection = Some(open).filter(Connection::is_usable);
            match outcome {
                Outcome::Acknowledged => break,
                // The same value once more does no harm.
                Outcome::None(_) | Outcome::Unknown(_) => thread::sleep(PAUSE),
                Outcome::Wrong(what) => bail!("value {number}: {what}"),
            }
        }
    }
}

fn key(number: usize) -> String {
    format!("large-{number}")
}

/// Text that no compression makes much shorter.
fn value(number: usize) -> String {
    let mut rng = Rng::with_seed(number as u64);
    (0..VALUE_BYTES).map(|_| rng.alphanumeric()).collect()
}

fn write(connection: &mut Connection, number: usize) -> Outcome {
    judge(connection.request("PUT", &put_target(&key(number), &value(number)), &[]))
}

fn read(connection: &mut Connection, number: usize) -> Outcome {
    let answer = connection.request("GET", &format!("/key/{}", key(number)), &[]);
    let expected = value(number);
    judge_as(answer, |answer| {
        answer.status == 200 && answer.body == expected.as_bytes()
    })
}

fn delete(connection: &mut Connection, number: usize) -> Outcome {
    let answer = connection.request("DELETE", &format!("/key/{}", key(number)), &[]);
    judge_as(answer, |answer| {
        answer.status == 200 && answer.body == b"DELETE success"
    })
}
