//! Whole comparisons: what `/scan` gives, what each schema holds, what the log says.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kvcluster_crds::NodeId;
use ring::digest::{Context as Digest, SHA256, digest};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::lab::{Lab, SCHEMA_PREFIX};
use crate::load::{Outcome, Report};
use crate::{http, poll, processes};

/// Longest run of one query: the hash over a schema of 35,000 rows takes less than a second.
const QUERY_LIMIT: Duration = Duration::from_mins(1);
/// Longest run of the log's decoder.
const DECODE_LIMIT: Duration = Duration::from_mins(2);
/// Connections that delete what an earlier test left: enough to fill the slots' batches.
const DELETING_CONNECTIONS: usize = 32;
/// Longest time until all that is acknowledged is in PostgreSQL.
pub const FLUSH_LIMIT: Duration = Duration::from_mins(1);
/// Differences that a failure shows.
const DIFFERENCES_SHOWN: usize = 5;

/// Key → value.
pub type Rows = BTreeMap<String, String>;

/// A flat JSON object in which no key comes twice.
struct Flat(Rows);

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Flat;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a flat object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Flat, A::Error> {
                let mut rows = Rows::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if rows.insert(key.clone(), value).is_some() {
                        return Err(serde::de::Error::custom(format!("{key:?} comes twice")));
                    }
                }
                Ok(Flat(rows))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// All pairs of the store by `GET /scan`.
pub fn scan(base: &str) -> Result<Rows> {
    let answer = http::once(base, "GET", "/scan")?;
    ensure!(
        answer.status == 200,
        "GET /scan gave {}: {}",
        answer.status,
        answer.text()
    );
    let flat: Flat = serde_json::from_slice(&answer.body).context("GET /scan is no flat object")?;
    Ok(flat.0)
}

/// Deletes every pair of the store; waits where a limit is reached.
pub fn empty(base: &str) -> Result<()> {
    let keys: Vec<String> = scan(base)?.into_keys().collect();
    let share = keys.len().div_ceil(DELETING_CONNECTIONS).max(1);
    std::thread::scope(|scope| {
        let running: Vec<_> = keys
            .chunks(share)
            .map(|keys| scope.spawn(|| delete_all(base, keys)))
            .collect();
        let mut ended = running.into_iter().map(std::thread::ScopedJoinHandle::join);
        ended.try_for_each(|ended| ended.ok().context("a connection's thread panicked")?)
    })?;
    expect_same(&scan(base)?, &Rows::new())
}

fn delete_all(base: &str, keys: &[String]) -> Result<()> {
    let mut connection = http::Connection::open(base)?;
    for key in keys {
        let target = format!("/key/{}", crate::percent::encode(key.as_bytes()));
        let answer = poll::until(FLUSH_LIMIT, "room for a delete", || {
            let answer = connection.request("DELETE", &target, &[])?;
            Ok((answer.status != 429).then_some(answer))
        })?;
        ensure!(
            answer.status == 200,
            "DELETE gave {}: {}",
            answer.status,
            answer.text()
        );
    }
    Ok(())
}

/// Fails with the first differences.
pub fn expect_same(seen: &Rows, expected: &Rows) -> Result<()> {
    let missing = expected
        .iter()
        .filter(|(key, value)| seen.get(*key) != Some(value));
    let foreign = seen.iter().filter(|(key, _)| !expected.contains_key(*key));
    let missing: Vec<_> = missing
        .map(|(key, value)| (key, value, seen.get(key)))
        .collect();
    let foreign: Vec<_> = foreign.collect();
    if missing.is_empty() && foreign.is_empty() {
        return Ok(());
    }
    bail!(
        "{} pairs are missing or other (key, expected, seen): {:?}; {} should not be there: {:?}",
        missing.len(),
        &missing[..missing.len().min(DIFFERENCES_SHOWN)],
        foreign.len(),
        &foreign[..foreign.len().min(DIFFERENCES_SHOWN)]
    )
}

/// Holds a store against the answers that its clients got: every row has the acknowledged value, or that of one of its
/// attempts with unknown effect; never one that was refused with no effect; and nothing else is there.
pub fn expect_answers_kept(seen: &Rows, rows: &[(String, String)], report: &Report) -> Result<()> {
    let mut possible: HashMap<&str, HashSet<&str>> = HashMap::new();
    for attempt in &report.attempts {
        let values = possible.entry(rows[attempt.row].0.as_str()).or_default();
        match attempt.outcome {
            Outcome::Acknowledged | Outcome::Unknown(_) => {
                values.insert(&attempt.value);
            }
            Outcome::None(_) | Outcome::Wrong(_) => {}
        }
    }
    let is_kept = |key: &str, values: &HashSet<&str>| {
        seen.get(key)
            .is_some_and(|value| values.contains(value.as_str()))
    };
    let lost: Vec<_> = possible
        .iter()
        .filter(|(key, values)| !is_kept(key, values))
        .map(|(key, values)| (key, values, seen.get(*key)))
        .collect();
    let shown = &lost[..lost.len().min(DIFFERENCES_SHOWN)];
    ensure!(
        lost.is_empty(),
        "{} rows do not hold what was answered: {shown:?}",
        lost.len()
    );
    ensure!(
        seen.len() == rows.len(),
        "{} pairs instead of {}",
        seen.len(),
        rows.len()
    );
    Ok(())
}

/// Number of rows and a hash over all of them, in the order of the keys' bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Number of rows.
    pub count: usize,
    /// SHA-256 over each row's SHA-256 of key and of value.
    pub hash: String,
}

/// The summary of what is expected.
pub fn summary_of(rows: &Rows) -> Summary {
    let mut all = Digest::new(&SHA256);
    for (key, value) in rows {
        all.update(digest(&SHA256, key.as_bytes()).as_ref());
        all.update(digest(&SHA256, value.as_bytes()).as_ref());
    }
    Summary {
        count: rows.len(),
        hash: hex(all.finish().as_ref()),
    }
}

/// The summary of a schema's table, computed by PostgreSQL.
pub fn summary_of_schema(postgres: &str, schema: &str) -> Result<Summary> {
    let statement = format!(
        "SELECT count(*), encode(sha256(coalesce(string_agg(sha256(key) || sha256(value), ''::bytea ORDER BY key), \
         ''::bytea)), 'hex') FROM \"{schema}\".kv"
    );
    let line = query(postgres, &statement)?;
    let (count, hash) = line
        .trim()
        .split_once('|')
        .with_context(|| format!("psql said {line:?}"))?;
    Ok(Summary {
        count: count.parse()?,
        hash: hash.to_owned(),
    })
}

/// The schema of every node comes to hold exactly `expected`.
pub fn expect_schemas(lab: &Lab, expected: &Rows) -> Result<()> {
    let summary = summary_of(expected);
    for node in &lab.nodes {
        let schema = lab.names().schema(SCHEMA_PREFIX, NodeId(node.id));
        let what = format!("the rows of {schema}");
        poll::until_equal(FLUSH_LIMIT, &what, &summary, || {
            summary_of_schema(lab.postgres()?, &schema)
        })?;
    }
    Ok(())
}

/// Every node gives exactly `expected` by `/scan`, and every node's schema comes to hold exactly that.
pub fn expect_everywhere(lab: &Lab, expected: &Rows) -> Result<()> {
    for url in lab.urls()? {
        expect_same(&scan(&url)?, expected)?;
    }
    expect_schemas(lab, expected)
}

/// Makes a node's tables as empty as a new node's are. The node must not run.
pub fn empty_schema(lab: &Lab, node: u32) -> Result<()> {
    let schema = lab.names().schema(SCHEMA_PREFIX, NodeId(node));
    empty_tables(lab.postgres()?, &schema)
}

/// Makes the tables of a schema as empty as a new node's are.
pub fn empty_tables(postgres: &str, schema: &str) -> Result<()> {
    let tables = ["kv", "slot_state", "dedup", "restore"];
    let tables = tables.map(|table| format!("\"{schema}\".{table}"));
    let statement = format!("TRUNCATE {}", tables.join(", "));
    query(postgres, &statement).map(drop)
}

/// Runs one statement by `psql`; rows are lines, columns are parted by `|`.
pub fn query(postgres: &str, statement: &str) -> Result<String> {
    let mut command = Command::new("psql");
    command.args([
        postgres,
        "-X",
        "-A",
        "-t",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        statement,
    ]);
    processes::output(&mut command, QUERY_LIMIT)
}

/// What the decoder counted, over one partition or all.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Counts {
    /// First offset.
    pub start: i64,
    /// Offset after the last one.
    pub end: i64,
    /// Records that counted.
    pub valid: i64,
    /// Records of ours that did not count.
    pub ignored: i64,
    /// Records without our magic.
    pub foreign: i64,
    /// Claims that counted.
    pub claims: i64,
    /// Put effects of valid commands.
    pub puts: i64,
}

/// The decoded log topic.
#[derive(Clone, Debug, Deserialize)]
pub struct DecodedLog {
    /// One entry per partition.
    pub partitions: Vec<Counts>,
}

impl DecodedLog {
    /// Put effects over all partitions.
    pub fn puts(&self) -> i64 {
        self.partitions.iter().map(|partition| partition.puts).sum()
    }

    /// Claims that counted, over all partitions.
    pub fn claims(&self) -> i64 {
        self.partitions
            .iter()
            .map(|partition| partition.claims)
            .sum()
    }

    /// Every record between start and end is valid or skipped, none twice and none left out.
    pub fn expect_whole(&self) -> Result<()> {
        for (partition, counts) in self.partitions.iter().enumerate() {
            let judged = counts.valid + counts.ignored + counts.foreign;
            ensure!(
                judged == counts.end - counts.start,
                "partition {partition}: {counts:?}"
            );
        }
        Ok(())
    }
}

/// Decodes a log topic with the node's own decoder.
pub fn decode_log(bootstrap: &str, topic: &str) -> Result<DecodedLog> {
    let mut command = Command::new(processes::own_program("kvcluster-node")?);
    command.args(["decode-log", "--bootstrap", bootstrap, "--topic", topic]);
    let text = processes::output(&mut command, DECODE_LIMIT)?;
    serde_json::from_str(&text).with_context(|| format!("decode-log printed {text:?}"))
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all that is written");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Attempt;

    fn rows(pairs: &[(&str, &str)]) -> Rows {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn report(attempts: &[(&str, Outcome)]) -> Report {
        let attempt = |(value, outcome): &(&str, Outcome)| Attempt {
            row: 0,
            value: (*value).to_owned(),
            outcome: outcome.clone(),
            begin: Duration::ZERO,
            took: Duration::ZERO,
        };
        Report {
            attempts: attempts.iter().map(attempt).collect(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn a_key_that_comes_twice_is_refused() {
        assert!(serde_json::from_str::<Flat>(r#"{"a":"1","b":"2"}"#).is_ok());
        assert!(serde_json::from_str::<Flat>(r#"{"a":"1","a":"1"}"#).is_err());
    }

    #[test]
    fn every_kind_of_difference_is_seen() {
        let expected = rows(&[("a", "1"), ("b", "2")]);
        assert!(expect_same(&expected, &expected).is_ok());
        for other in [
            &[("a", "1")][..],
            &[("a", "1"), ("b", "3")],
            &[("a", "1"), ("b", "2"), ("c", "3")],
        ] {
            assert!(expect_same(&rows(other), &expected).is_err(), "{other:?}");
        }
    }

    #[test]
    fn answers_bind_the_store() {
        let input = [("k".to_owned(), "v".to_owned())];
        let unknown = || Outcome::Unknown(String::new());
        let none = || Outcome::None(String::new());
        let report = report(&[
            ("v", unknown()),
            ("v2", none()),
            ("v3", Outcome::Acknowledged),
        ]);
        let kept = |value| expect_answers_kept(&rows(&[("k", value)]), &input, &report);
        assert!(kept("v3").is_ok() && kept("v").is_ok());
        assert!(kept("v2").is_err(), "an attempt without effect took effect");
        assert!(
            expect_answers_kept(&Rows::new(), &input, &report).is_err(),
            "a row is lost"
        );
        let more = rows(&[("k", "v3"), ("x", "y")]);
        assert!(
            expect_answers_kept(&more, &input, &report).is_err(),
            "a row came from nowhere"
        );
    }

    #[test]
    fn a_log_with_a_gap_is_seen() {
        let counts = Counts {
            start: 1,
            end: 5,
            valid: 3,
            ignored: 1,
            foreign: 0,
            claims: 1,
            puts: 2,
        };
        let whole = DecodedLog {
            partitions: vec![counts.clone()],
        };
        assert!(whole.expect_whole().is_ok());
        let torn = DecodedLog {
            partitions: vec![Counts { valid: 2, ..counts }],
        };
        assert!(torn.expect_whole().is_err());
    }

    #[test]
    fn the_summary_depends_on_every_byte() {
        let one = summary_of(&rows(&[("a", "1"), ("b", "2")]));
        assert_ne!(one, summary_of(&rows(&[("a", "1"), ("b", "3")])));
        assert_ne!(one, summary_of(&rows(&[("a", "1"), ("c", "2")])));
    }
}
