//! Reads at replicas: one's own writes by token through any node, and something while a slot has no leader.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvcluster_suite::http::{Answer, Connection};
use kvcluster_suite::lab;
use kvcluster_suite::load::put_target;
use kvcluster_suite::{election, poll};

use crate::support::{SETTLE_LIMIT, empty_store};

/// Writes, each read at once through another node.
const WRITES: usize = 1_000;
/// Longest that a read at a replica may take while there is no leader.
const AT_ONCE: Duration = Duration::from_millis(500);

fn put(connection: &mut Connection, key: &str, value: &str) -> Result<String> {
    let answer = connection.request("PUT", &put_target(key, value), &[])?;
    ensure!(
        answer.status == 200,
        "PUT gave {}: {}",
        answer.status,
        answer.text()
    );
    let token = answer.header("kvcluster-token");
    Ok(token.context("a write has a token")?.to_owned())
}

fn get(connection: &mut Connection, key: &str, header: (&str, &str)) -> Result<Answer> {
    Ok(connection.request("GET", &format!("/key/{key}"), &[header])?)
}

#[test]
fn a_token_shows_ones_own_writes_through_any_node() -> Result<()> {
    let lab = empty_store()?;
    let urls = lab.urls()?;
    let mut connections = urls
        .iter()
        .map(|url| Connection::open(url))
        .collect::<Result<Vec<_>, _>>()?;
    let begin = Instant::now();
    for number in 0..WRITES {
        let key = format!("levels-{}", number % 50);
        let value = number.to_string();
        let token = put(&mut connections[number % urls.len()], &key, &value)?;
        let other = &mut connections[(number + 1) % urls.len()];
        let read = get(other, &key, ("kvcluster-token", &token))?;
        ensure!(
            read.status == 200 && read.text() == value,
            "{key} is {:?} after {token}, not {value}",
            read.text()
        );
    }
    println!(
        "levels: {WRITES} writes, each read through another node by its token, in {:?}",
        begin.elapsed()
    );
    Ok(())
}

#[test]
fn replicas_answer_while_a_slot_has_no_leader() -> Result<()> {
    let lab = empty_store()?;
    let leaders = election::settled(&lab, None, SETTLE_LIMIT)?;
    let victim = election::busiest(&leaders);
    let key = election::key_led_by("levels", victim, &leaders)?;
    let other = lab
        .nodes
        .iter()
        .find(|node| node.id != victim)
        .context("there is another")?;
    let mut connection = Connection::open(other.url.as_deref().context("it has a URL")?)?;
    put(&mut connection, &key, "1")?;
    // The replica beside the leader is a moment behind.
    poll::until(SETTLE_LIMIT, "the write at the other replica", || {
        let read = get(&mut connection, &key, ("kvcluster-consistency", "any"))?;
        Ok((read.text() == "1").then_some(()))
    })?;
    lab::kill(&format!("node-{victim}"))?;
    let begin = Instant::now();
    let read = get(&mut connection, &key, ("kvcluster-consistency", "any"));
    let took = begin.elapsed();
    lab::start(&format!("node-{victim}"))?;
    let read = read?;
    println!("levels: a read at a replica just after its leader was killed took {took:?}");
    ensure!(
        (read.status, read.text().as_str()) == (200, "1"),
        "{}: {}",
        read.status,
        read.text()
    );
    ensure!(took < AT_ONCE, "it took {took:?}");
    election::settled(&lab, None, SETTLE_LIMIT).map(drop)
}
