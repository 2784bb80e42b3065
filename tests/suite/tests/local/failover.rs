//! Leaders die by SIGKILL under load, again and again: how long each of their slots takes no write, and that every key keeps
//! exactly what its writer was told.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use kvcluster_suite::http::{self, Connection};
use kvcluster_suite::lab::{self, Lab};
use kvcluster_suite::load::{Outcome, judge, put_target};
use kvcluster_suite::{check, election, processes};

use crate::support::{SETTLE_LIMIT, empty_store, while_clients};

/// Leaders killed, one after the other.
const KILLS: usize = 50;
/// Longest that a slot may take no write, on two cores that run everything; the goal stands in the output.
const LONGEST: Duration = Duration::from_secs(10);
/// Longest run of `kill`.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Load on a slot after its leader was replaced, before the next one dies.
const BETWEEN: Duration = Duration::from_millis(300);
/// The slowest replacements that are printed each.
const SLOWEST_SHOWN: usize = 5;
/// Pause after a write that was not acknowledged: short against what is measured.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// One write of one writer; values count from 0.
struct Written {
    begin: Instant,
    end: Instant,
    outcome: Outcome,
}

/// One leader's death.
#[derive(Debug)]
struct Kill {
    at: Instant,
    /// The same on the clock of the nodes' logs.
    unix: Duration,
    node: u32,
    /// The slots it led.
    led: Vec<u32>,
    /// How long one of them took no write, at most.
    longest: Duration,
}

#[test]
fn writes_go_on_soon_after_a_leader_was_killed() -> Result<()> {
    let lab = empty_store()?;
    let leaders = election::settled(&lab, None, SETTLE_LIMIT)?;
    let keys = election::keys_of_slots("failover", &leaders)?;
    let urls = lab.urls()?;
    let topic = lab.names().log_topic();
    let before = check::decode_log(lab.kafka()?, &topic)?.puts();
    let client = |slot: usize, stop: &AtomicBool| write_until(stop, &urls, slot, &keys[slot]);
    let (mut kills, histories) = while_clients(keys.len(), client, kill_leaders)?;
    let mut gaps = Vec::new();
    let (mut acknowledged, mut unknown) = (0, 0);
    for (slot, (history, key)) in histories.into_iter().zip(&keys).enumerate() {
        expect_kept(lab.service()?, key, &history)?;
        for write in &history {
            acknowledged += i64::from(write.outcome == Outcome::Acknowledged);
            unknown += i64::from(matches!(write.outcome, Outcome::Unknown(_)));
        }
        let slot = u32::try_from(slot)?;
        for kill in kills.iter_mut().filter(|kill| kill.led.contains(&slot)) {
            let first = history
                .iter()
                .find(|write| write.begin >= kill.at && write.outcome == Outcome::Acknowledged);
            let first =
                first.with_context(|| format!("slot {slot} took no write after {kill:?}"))?;
            let gap = first.end - kill.at;
            kill.longest = kill.longest.max(gap);
            gaps.push(gap);
        }
    }
    let after = check::decode_log(lab.kafka()?, &topic)?;
    after.expect_whole()?;
    let puts = after.puts() - before;
    ensure!(
        (acknowledged..=acknowledged + unknown).contains(&puts),
        "{puts} put effects are in the log; {acknowledged} were acknowledged, {unknown} are unknown"
    );
    gaps.sort_unstable();
    let percentile = |percent: usize| gaps[(gaps.len() - 1) * percent / 100].as_millis();
    println!(
        "failover: {} leaders killed, {} slots without one: first acknowledged write after p50 {} ms, p99 {} ms, longest {} ms (goal: p99 1000 ms)",
        kills.len(),
        gaps.len(),
        percentile(50),
        percentile(99),
        percentile(100)
    );
    kills.sort_by_key(|kill| std::cmp::Reverse(kill.longest));
    for kill in kills.iter().take(SLOWEST_SHOWN) {
        println!(
            "failover: node {} with {} slots, killed at {:.3} of the Unix time: {} ms",
            kill.node,
            kill.led.len(),
            kill.unix.as_secs_f64(),
            kill.longest.as_millis()
        );
    }
    ensure!(
        gaps.last().is_some_and(|longest| *longest <= LONGEST),
        "a slot took no write for longer than {LONGEST:?}"
    );
    Ok(())
}

/// Kills the leader of most slots, starts it again, and so on.
fn kill_leaders() -> Result<Vec<Kill>> {
    let mut kills = Vec::new();
    for _ in 0..KILLS {
        let lab = Lab::local()?;
        let leaders = election::settled(&lab, None, SETTLE_LIMIT)?;
        let victim = election::busiest(&leaders);
        let led = leaders.iter().filter(|(_, leader)| **leader == victim);
        let led = led.map(|(slot, _)| *slot).collect();
        let node = lab.nodes.iter().find(|node| node.id == victim);
        let pid = node
            .and_then(|node| node.pid)
            .context("it runs")?
            .to_string();
        let (at, unix) = (Instant::now(), SystemTime::UNIX_EPOCH.elapsed()?);
        processes::output(Command::new("kill").args(["-9", &pid]), KILL_LIMIT)?;
        kills.push(Kill {
            at,
            unix,
            node: victim,
            led,
            longest: Duration::ZERO,
        });
        election::settled(&lab, Some(victim), SETTLE_LIMIT)?;
        thread::sleep(BETWEEN);
        lab::start(&format!("node-{victim}"))?;
    }
    Ok(kills)
}

/// Writes 0, 1, 2, … to one key, each until its fate is known or given up, through one node after the other.
fn write_until(stop: &AtomicBool, urls: &[String], slot: usize, key: &str) -> Result<Vec<Written>> {
    let mut history = Vec::new();
    let mut target = slot;
    let mut connection: Option<Connection> = None;
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let value = history.len().to_string();
        let answer = match connection
            .take()
            .map_or_else(|| Connection::open(&urls[target % urls.len()]), Ok)
        {
            Ok(mut open) => {
                let answer = open.request("PUT", &put_target(key, &value), &[]);
                connection = Some(open).filter(Connection::is_usable);
                answer
            }
            Err(failure) => Err(failure),
        };
        let outcome = judge(answer);
        if let Outcome::Wrong(what) = &outcome {
            anyhow::bail!("slot {slot}: {what}");
        }
        if outcome != Outcome::Acknowledged {
            (connection, target) = (None, target + 1);
            thread::sleep(RETRY_PAUSE);
        }
        history.push(Written {
            begin,
            end: Instant::now(),
            outcome,
        });
    }
    Ok(history)
}

/// The key holds the last acknowledged value, or one written after it whose fate was unknown.
fn expect_kept(service: &str, key: &str, history: &[Written]) -> Result<()> {
    let answer = http::once(service, "GET", &format!("/key/{key}"))?;
    let seen: usize = answer
        .text()
        .parse()
        .with_context(|| format!("GET gave {}: {}", answer.status, answer.text()))?;
    let last = history
        .iter()
        .rposition(|write| write.outcome == Outcome::Acknowledged);
    let last = last.context("nothing was acknowledged")?;
    let possible = seen == last
        || (seen > last
            && matches!(
                history.get(seen).map(|write| &write.outcome),
                Some(Outcome::Unknown(_))
            ));
    ensure!(
        possible,
        "{key} holds {seen}, and {last} was acknowledged last"
    );
    Ok(())
}
