//! What a history shows: whether it is linearizable, how many answers there were, how long nobody was answered.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::linear::{self, Verdict};
use super::porcupine::Porcupine;
use super::resolve::{self, Change};
use super::{End, Event, What};

/// Operations that each history must have answered with success: a store that refuses everything is no proof.
const ANSWERED_MIN: usize = 200;

/// How the operations of a history ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answered with success.
    pub answered: usize,
    /// Refused, without effect.
    pub refused: usize,
    /// Of unknown outcome.
    pub unknown: usize,
}

impl Counts {
    /// Of these events.
    pub fn of(events: &[Event]) -> Result<Self> {
        let mut counts = Self::default();
        for operation in super::pair(events)? {
            match operation.end {
                Some((_, End::Ok(_))) => counts.answered += 1,
                Some((_, End::Fail)) => counts.refused += 1,
                Some((_, End::Info)) | None => counts.unknown += 1,
            }
        }
        Ok(counts)
    }

    /// All of them.
    pub fn operations(&self) -> usize {
        self.answered + self.refused + self.unknown
    }
}

/// The changes of each key.
pub fn by_key(changes: Vec<Change>) -> BTreeMap<String, Vec<Change>> {
    let mut by_key: BTreeMap<String, Vec<Change>> = BTreeMap::new();
    for change in changes {
        by_key.entry(change.key.clone()).or_default().push(change);
    }
    by_key
}

/// Holds a history against the log, and both checkers against each other. The keys of the history begin with its name and a
/// dot.
pub fn judge(
    name: &str,
    events: &[Event],
    log: &BTreeMap<String, Vec<Change>>,
    porcupine: &Porcupine,
) -> Result<Counts> {
    let operations = super::pair(events)?;
    let prefix = format!("{name}.");
    let own = log
        .range(prefix.clone()..)
        .take_while(|(key, _)| key.starts_with(&prefix));
    let changes: Vec<Change> = own.flat_map(|(_, changes)| changes.clone()).collect();
    let resolved = resolve::resolve(&operations, &changes)?;
    let (ours, theirs) = (linear::check(&resolved), porcupine.check(&resolved)?);
    for (key, verdict) in &ours {
        ensure!(
            *verdict == Verdict::Linearizable && theirs.get(key) == Some(verdict),
            "{key}: {verdict:?} by the own checker, {:?} by Porcupine",
            theirs.get(key)
        );
    }
    let counts = Counts::of(events)?;
    ensure!(
        counts.answered >= ANSWERED_MIN,
        "only {} operations were answered with success",
        counts.answered
    );
    Ok(counts)
}

/// Longest time without an answer to anybody.
pub fn longest_silence(events: &[Event]) -> Duration {
    longest_gap(events.iter().filter_map(|event| match event.what {
        What::Ok { .. } => Some(event.t_ns),
        _ => None,
    }))
}

/// Longest time for which a key was asked for and nobody was answered for it; and the key.
pub fn longest_wait_for_a_key(events: &[Event]) -> Option<(Duration, String)> {
    let mut keys: BTreeMap<u64, &str> = BTreeMap::new();
    // Per key: since when it is asked for in vain; and the calls without an answer.
    let mut in_vain: BTreeMap<&str, u64> = BTreeMap::new();
    let mut open: BTreeMap<&str, BTreeMap<u64, u64>> = BTreeMap::new();
    let mut longest = None;
    for event in events {
        let id = match &event.what {
            What::Invoke { id, action, .. } => {
                keys.insert(*id, action.key());
                open.entry(action.key())
                    .or_default()
                    .insert(*id, event.t_ns);
                in_vain.entry(action.key()).or_insert(event.t_ns);
                continue;
            }
            What::Ok { id, .. } | What::Fail { id, .. } | What::Info { id, .. } => id,
            What::Fault { .. } => continue,
        };
        let Some(key) = keys.remove(id) else { continue };
        let calls = open.entry(key).or_default();
        calls.remove(id);
        if !matches!(event.what, What::Ok { .. }) {
            continue;
        }
        if let Some(since) = in_vain.remove(key) {
            let waited = Duration::from_nanos(event.t_ns.saturating_sub(since));
            longest = longest.max(Some((waited, key.to_owned())));
        }
        // Calls that are still open wait since they began.
        if let Some(since) = calls.values().min() {
            in_vain.insert(key, *since);
        }
    }
    longest
}

/// Some of the answers that were no success.
pub fn failures(events: &[Event], count: usize) -> Vec<&Event> {
    let is_failure = |event: &&Event| matches!(event.what, What::Fail { .. } | What::Info { .. });
    events.iter().filter(is_failure).take(count).collect()
}

fn longest_gap(times: impl Iterator<Item = u64>) -> Duration {
    let times: Vec<u64> = times.collect();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max();
    Duration::from_nanos(longest.unwrap_or_default())
}

/// Writes the events into a folder; where, or why not.
pub fn keep(folder: &Path, name: &str, events: &[Event]) -> String {
    let path = folder.join(format!("{name}.jsonl"));
    match super::save(&path, events) {
        Ok(()) => path.display().to_string(),
        Err(error) => format!("not written: {error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Action;

    fn asked(t_ns: u64, id: u64, key: &str) -> Event {
        let action = Action::Get {
            key: key.to_owned(),
        };
        let what = What::Invoke {
            id,
            client: 0,
            node: 0,
            action,
        };
        Event { t_ns, what }
    }

    fn answered(t_ns: u64, id: u64) -> Event {
        let what = What::Ok { id, value: None };
        Event { t_ns, what }
    }

    fn failed(t_ns: u64, id: u64) -> Event {
        let why = String::new();
        Event {
            t_ns,
            what: What::Fail { id, why },
        }
    }

    #[test]
    fn a_wait_begins_with_the_first_call_in_vain() {
        let events = [
            asked(0, 1, "a"),
            answered(10, 1),
            // Nobody asks for `a` meanwhile.
            asked(10, 2, "b"),
            answered(50, 2),
            asked(60, 3, "a"),
            failed(70, 3),
            asked(80, 4, "a"),
            asked(85, 5, "a"),
            answered(90, 5),
            answered(125, 4),
        ];
        assert_eq!(longest_silence(&events), Duration::from_nanos(40));
        assert_eq!(
            longest_wait_for_a_key(&events),
            Some((Duration::from_nanos(45), "a".to_owned())),
            "call 4 is answered after call 5, and has waited for longer than call 3's key did",
        );
        let counts = Counts::of(&events).expect("a history");
        assert_eq!(
            (counts.answered, counts.refused, counts.operations()),
            (4, 1, 5)
        );
        assert_eq!(failures(&events, 9).len(), 1);
    }
}
