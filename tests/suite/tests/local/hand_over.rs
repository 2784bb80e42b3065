//! Nodes are stopped gracefully under load, one after the other: nobody is refused, and nobody waits long.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kvcluster_suite::http::{Connection, Failure};
use kvcluster_suite::lab::{self, Lab};
use kvcluster_suite::load::{Outcome, judge, put_target};
use kvcluster_suite::{check, election};

use crate::support::{SETTLE_LIMIT, empty_store, while_clients};

/// Graceful stops, each of the node that leads most slots.
const STOPS: usize = 10;
/// Load without a stop, before and between them.
const QUIET: Duration = Duration::from_secs(1);
/// Pause of a client between two writes: the machine is not to be the limit.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest that a write may take; what is expected stands in the output.
const LONGEST: Duration = Duration::from_secs(2);

/// One acknowledged write.
struct Write {
    begin: Instant,
    took: Duration,
}

/// What one client saw.
#[derive(Default)]
struct Seen {
    writes: Vec<Write>,
    failures: Vec<String>,
    reconnected: usize,
}

#[test]
fn a_graceful_stop_fails_no_request() -> Result<()> {
    let lab = empty_store()?;
    let leaders = election::settled(&lab, None, SETTLE_LIMIT)?;
    let keys = election::keys_of_slots("handover", &leaders)?;
    let urls = lab.urls()?;
    let topic = lab.names().log_topic();
    let before = check::decode_log(lab.kafka()?, &topic)?.puts();
    let client = |slot: usize, stop: &AtomicBool| write_until(stop, &urls, slot, &keys[slot]);
    let (stops, seen) = while_clients(keys.len(), client, stop_leaders)?;
    let (mut during, mut else_where, mut failures, mut reconnected) = (vec![], vec![], vec![], 0);
    for seen in seen {
        failures.extend(seen.failures);
        reconnected += seen.reconnected;
        for write in seen.writes {
            let is_during = |(from, to): &(Instant, Instant)| {
                write.begin <= *to && write.begin + write.took >= *from
            };
            if stops.iter().any(is_during) {
                during.push(write.took);
            } else {
                else_where.push(write.took);
            }
        }
    }
    let acknowledged = during.len() + else_where.len();
    let puts = check::decode_log(lab.kafka()?, &topic)?.puts() - before;
    println!(
        "hand-over: {} graceful stops, {acknowledged} writes, {} failed, {reconnected} connections made anew; \
         during stops {}, else {}",
        stops.len(),
        failures.len(),
        line(&mut during),
        line(&mut else_where)
    );
    ensure!(
        failures.is_empty(),
        "{} requests failed: {:?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    ensure!(
        puts == i64::try_from(acknowledged)?,
        "{puts} puts are in the log, {acknowledged} were acknowledged"
    );
    let longest = during.last().copied().unwrap_or_default();
    ensure!(longest <= LONGEST, "a write took {longest:?}");
    Ok(())
}

/// Stops the leader of most slots, starts it again, and so on; from the signal to the end of each.
fn stop_leaders() -> Result<Vec<(Instant, Instant)>> {
    let mut stops = Vec::new();
    for _ in 0..STOPS {
        let lab = Lab::local()?;
        let victim = format!(
            "node-{}",
            election::busiest(&election::settled(&lab, None, SETTLE_LIMIT)?)
        );
        thread::sleep(QUIET);
        let from = Instant::now();
        lab::signal(&victim, "TERM")?;
        stops.push((from, Instant::now()));
        lab::start(&victim)?;
    }
    Ok(stops)
}

/// Writes 0, 1, 2, … to one key, over a kept connection to one node after the other as they end it. Like a client behind a
/// Service, it goes to another node when one takes no connection.
fn write_until(stop: &AtomicBool, urls: &[String], slot: usize, key: &str) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut target = slot;
    let mut connection: Option<Connection> = None;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begin = Instant::now();
        let mut open = match connection.take() {
            Some(open) => open,
            None => connect(urls, &mut target)?,
        };
        let answer = open.request("PUT", &put_target(key, &number.to_string()), &[]);
        match judge(answer) {
            Outcome::Acknowledged => seen.writes.push(Write {
                begin,
                took: begin.elapsed(),
            }),
            other => seen.failures.push(format!(
                "slot {slot}, node {}: {other:?}",
                target % urls.len()
            )),
        }
        if open.is_usable() {
            connection = Some(open);
        } else {
            (seen.reconnected, target) = (seen.reconnected + 1, target + 1);
        }
        thread::sleep(PAUSE);
    }
    Ok(seen)
}

fn connect(urls: &[String], target: &mut usize) -> Result<Connection, Failure> {
    let mut last = Connection::open(&urls[*target % urls.len()]);
    for _ in 1..urls.len() {
        if last.is_ok() {
            break;
        }
        *target += 1;
        last = Connection::open(&urls[*target % urls.len()]);
    }
    last
}

fn line(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| {
        let index = times.len().saturating_sub(1) * percent / 100;
        times.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3
    };
    format!(
        "p50 {:.1} ms, p99 {:.1} ms, longest {:.0} ms",
        at(50),
        at(99),
        at(100)
    )
}
