//! What clients saw of a store, as events with times, in one format of JSON lines; and what can be made of them.
//!
//! ```text
//! events ──pair──▶ operations ──resolve against the log──▶ operations whose fate is known ──▶ linear, porcupine
//! ```
//! Values are unique within a run, so that the log tells for each write whether, and where, it took effect.

pub mod client;
pub mod linear;
pub mod porcupine;
pub mod resolve;
pub mod verdict;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// One thing that was seen. One line of a history's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, from the begin of the run.
    pub t_ns: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A client asks.
    Invoke {
        /// Names the operation within the run.
        id: u64,
        /// The client; it waits for one answer before it asks again.
        client: u32,
        /// The node that is asked.
        node: u32,
        /// What.
        action: Action,
    },
    /// It was answered with success.
    Ok {
        /// The operation.
        id: u64,
        /// What a read saw; none: no such key.
        value: Option<String>,
    },
    /// It had no effect and will have none.
    Fail {
        /// The operation.
        id: u64,
        /// The answer.
        why: String,
    },
    /// Whether it had, or will have, an effect is not known.
    Info {
        /// The operation.
        id: u64,
        /// The answer, or its absence.
        why: String,
    },
    /// A fault begins or is taken back.
    Fault {
        /// Its name.
        fault: String,
        /// What it hits.
        target: String,
        /// What was done.
        phase: String,
    },
}

/// What a client asks of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Read it.
    Get {
        /// The key.
        key: String,
    },
    /// Write it.
    Put {
        /// The key.
        key: String,
        /// Never written twice in a run.
        value: String,
    },
    /// Delete it.
    Delete {
        /// The key.
        key: String,
    },
}

impl Action {
    /// The key.
    pub fn key(&self) -> &str {
        match self {
            Self::Get { key } | Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// One operation on one key, as a checker sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The client.
    pub client: u32,
    /// The key.
    pub key: String,
    /// What took effect at once, somewhere between call and return.
    pub step: Step,
    /// When it was asked for.
    pub call: u64,
    /// When it was answered; none when it may take effect at any later time, or never.
    #[serde(rename = "return")]
    pub returned: Option<u64>,
}

/// What an operation does to the one value of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It saw this; none: no such key.
    Read(Option<String>),
    /// It left this; none: no such key.
    Write(Option<String>),
}

/// An operation and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What was asked.
    pub action: Action,
    /// By whom.
    pub client: u32,
    /// When.
    pub call: u64,
    /// How it ended; none: nobody waited for it.
    pub end: Option<(u64, End)>,
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With success.
    Ok(Option<String>),
    /// Without effect.
    Fail,
    /// Nobody knows.
    Info,
}

/// The operations of a run, in the order of their calls.
pub fn pair(events: &[Event]) -> Result<Vec<Ended>> {
    let mut open: BTreeMap<u64, Ended> = BTreeMap::new();
    for Event { t_ns, what } in events {
        let (id, end) = match what {
            What::Invoke {
                id, client, action, ..
            } => {
                let begun = Ended {
                    action: action.clone(),
                    client: *client,
                    call: *t_ns,
                    end: None,
                };
                let before = open.insert(*id, begun);
                ensure!(before.is_none(), "operation {id} begins twice");
                continue;
            }
            What::Ok { id, value } => (id, End::Ok(value.clone())),
            What::Fail { id, .. } => (id, End::Fail),
            What::Info { id, .. } => (id, End::Info),
            What::Fault { .. } => continue,
        };
        let operation = open
            .get_mut(id)
            .with_context(|| format!("operation {id} ends and never began"))?;
        ensure!(operation.end.is_none(), "operation {id} ends twice");
        ensure!(
            *t_ns >= operation.call,
            "operation {id} ends before it began"
        );
        operation.end = Some((*t_ns, end));
    }
    let mut operations: Vec<Ended> = open.into_values().collect();
    operations.sort_by_key(|operation| operation.call);
    Ok(operations)
}

/// Writes events as JSON lines.
pub fn save(path: &Path, events: &[Event]) -> Result<()> {
    let mut text = Vec::new();
    for event in events {
        serde_json::to_writer(&mut text, event)?;
        writeln!(text)?;
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(t_ns: u64, what: What) -> Event {
        Event { t_ns, what }
    }

    fn get(id: u64) -> What {
        What::Invoke {
            id,
            client: 1,
            node: 0,
            action: Action::Get {
                key: "k".to_owned(),
            },
        }
    }

    #[test]
    fn an_event_is_one_flat_line() {
        let line = serde_json::to_string(&at(5, get(1))).expect("it is plain data");
        assert_eq!(
            line,
            r#"{"t_ns":5,"kind":"invoke","id":1,"client":1,"node":0,"action":{"get":{"key":"k"}}}"#
        );
        let back: Event = serde_json::from_str(&line).expect("it was written by us");
        assert_eq!(back, at(5, get(1)));
    }

    #[test]
    fn operations_are_paired_and_malformed_histories_refused() {
        let ok = |id| What::Ok { id, value: None };
        let paired = pair(&[at(1, get(7)), at(2, get(8)), at(3, ok(7))]).expect("well-formed");
        assert_eq!(paired[0].end, Some((3, End::Ok(None))));
        assert_eq!(paired[1].end, None);
        assert!(pair(&[at(1, ok(7))]).is_err(), "an end without a begin");
        assert!(pair(&[at(1, get(7)), at(1, get(7))]).is_err());
        assert!(pair(&[at(1, get(7)), at(2, ok(7)), at(3, ok(7))]).is_err());
        assert!(pair(&[at(2, get(7)), at(1, ok(7))]).is_err());
    }
}
