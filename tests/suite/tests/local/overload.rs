//! More is written than PostgreSQL takes: nodes refuse with 429 before they grow, and keep what they acknowledged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvcluster_suite::http::{self, Connection};
use kvcluster_suite::load::{Outcome, judge, put_target};
use kvcluster_suite::{check, election};

use crate::support::{SETTLE_LIMIT, empty_store, while_clients};

/// How long, and in a long run.
const LASTS: Duration = Duration::from_secs(20);
const LASTS_LONG: Duration = Duration::from_mins(10);
/// Writers, each with keys of its own, that it writes again and again.
const WRITERS: usize = 64;
const KEYS: usize = 16;
/// Large enough that the statements of three replicas are the limit, and not requests.
const VALUE_BYTES: usize = 32 * 1024;
/// Memory that a node may have resident: README, "Default limits".
pub(crate) const RESIDENT_MAX_MIB: u64 = 512;
/// Pause of a writer that was refused, and between two looks at memory.
const PAUSE: Duration = Duration::from_millis(20);

/// What became of the writes of one key, which count from 0.
#[derive(Default)]
struct Written {
    next: usize,
    acknowledged: Option<usize>,
    unknown: Vec<usize>,
}

#[derive(Default)]
struct Seen {
    keys: BTreeMap<String, Written>,
    acknowledged: usize,
    /// Refusals by their text.
    refused: BTreeMap<String, usize>,
}

#[test]
fn an_overload_is_refused_and_memory_stays_bounded() -> Result<()> {
    let lab = empty_store()?;
    let urls = lab.urls()?;
    let pids: Vec<u32> = lab.nodes.iter().filter_map(|node| node.pid).collect();
    let is_long = std::env::var_os("KVCLUSTER_LONG").is_some();
    let lasts = if is_long { LASTS_LONG } else { LASTS };
    let client =
        |writer: usize, stop: &AtomicBool| write_until(stop, &urls[writer % urls.len()], writer);
    let (peaks, seen) = while_clients(WRITERS, client, || watch(&pids, lasts))?;
    election::settled(&lab, None, SETTLE_LIMIT)?;
    let (mut acknowledged, mut refused) = (0, BTreeMap::new());
    for seen in seen {
        acknowledged += seen.acknowledged;
        for (why, count) in seen.refused {
            *refused.entry(why).or_insert(0) += count;
        }
        for (key, written) in &seen.keys {
            expect_kept(lab.service()?, key, written)?;
        }
    }
    let megabytes = acknowledged * VALUE_BYTES / 1_000_000;
    println!(
        "overload: {acknowledged} writes of {VALUE_BYTES} bytes acknowledged in {lasts:?} ({} MB/s), refused {refused:?}; \
         most resident memory of each node {peaks:?} MiB, limit {RESIDENT_MAX_MIB}",
        megabytes as u64 / lasts.as_secs()
    );
    ensure!(
        refused.keys().any(|why| why.starts_with("429 ")),
        "nothing was refused: this was no overload"
    );
    let most = peaks.into_iter().max().unwrap_or_default();
    ensure!(most <= RESIDENT_MAX_MIB, "a node had {most} MiB resident");
    let rows = check::scan(lab.service()?)?;
    check::expect_schemas(&lab, &rows)?;
    check::empty(lab.service()?)
}

/// Looks at the nodes' memory for a while; the most of each, mebibytes.
fn watch(pids: &[u32], lasts: Duration) -> Result<Vec<u64>> {
    let begin = Instant::now();
    let mut peaks = vec![0; pids.len()];
    while begin.elapsed() < lasts {
        for (pid, peak) in pids.iter().zip(&mut peaks) {
            *peak = resident_mib(*pid)?.max(*peak);
        }
        thread::sleep(PAUSE);
    }
    Ok(peaks)
}

/// Memory that a process has resident, mebibytes.
pub(crate) fn resident_mib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next());
    let kibibytes: u64 = kibibytes.context("a process has memory")?.parse()?;
    Ok(kibibytes / 1_024)
}

fn write_until(stop: &AtomicBool, base: &str, writer: usize) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut connection: Option<Connection> = None;
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("over-{writer}-{}", turn % KEYS);
        let written = seen.keys.entry(key.clone()).or_default();
        let number = written.next;
        written.next += 1;
        let value = format!("{number:08}").repeat(VALUE_BYTES / 8);
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open(base)?,
        };
        match judge(open.request("PUT", &put_target(&key, &value), &[])) {
            Outcome::Acknowledged => {
                written.acknowledged = Some(number);
                written.unknown.clear();
                seen.acknowledged += 1;
            }
            Outcome::None(why) => {
                *seen.refused.entry(why).or_default() += 1;
                thread::sleep(PAUSE);
            }
            Outcome::Unknown(why) => {
                written.unknown.push(number);
                *seen.refused.entry(format!("unknown: {why}")).or_default() += 1;
            }
            Outcome::Wrong(why) => bail!("{key}: {why}"),
        }
        connection = Some(open).filter(Connection::is_usable);
    }
    Ok(seen)
}

/// The key holds the last acknowledged write, or a later one whose fate is not known.
fn expect_kept(service: &str, key: &str, written: &Written) -> Result<()> {
    let answer = http::once(service, "GET", &format!("/key/{key}"))?;
    let seen = match answer.status {
        200 => Some(
            answer
                .text()
                .get(..8)
                .context("a value is longer")?
                .parse()?,
        ),
        404 => None,
        status => bail!("GET of {key} gave {status}: {}", answer.text()),
    };
    let is_kept =
        seen == written.acknowledged || seen.is_some_and(|seen| written.unknown.contains(&seen));
    ensure!(
        is_kept,
        "{key} holds {seen:?}; {:?} was acknowledged last, {:?} are unknown",
        written.acknowledged,
        written.unknown
    );
    Ok(())
}
