//! What a history shows: whether it is linearizable, how many answers there were, how long nobody was answered.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::linear::{self, Verdict};
use super::porcupine::Porcupine;
use super::resolve::{self, Change};
use super::{Action, End, Event, What};

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

/// Longest time in which nobody was answered for one key, which was asked for all the time; and the key.
pub fn longest_silence_of_a_key(events: &[Event]) -> Option<(Duration, String)> {
    let mut asked = BTreeMap::new();
    let mut answers: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for event in events {
        match &event.what {
            What::Invoke { id, action, .. } => {
                asked.insert(*id, Action::key(action));
            }
            What::Ok { id, .. } => {
                if let Some(key) = asked.get(id) {
                    answers.entry(key).or_default().push(event.t_ns);
                }
            }
            What::Fail { .. } | What::Info { .. } | What::Fault { .. } => {}
        }
    }
    let silences = answers
        .into_iter()
        .map(|(key, times)| (longest_gap(times.into_iter()), key.to_owned()));
    silences.max()
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

    #[test]
    fn a_key_may_be_silent_while_another_is_answered() {
        let events = [
            asked(0, 1, "a"),
            answered(10, 1),
            asked(10, 2, "b"),
            answered(20, 2),
            asked(20, 3, "b"),
            answered(60, 3),
            asked(60, 4, "a"),
            answered(90, 4),
        ];
        assert_eq!(longest_silence(&events), Duration::from_nanos(40));
        assert_eq!(
            longest_silence_of_a_key(&events),
            Some((Duration::from_nanos(80), "a".to_owned()))
        );
        let counts = Counts::of(&events).expect("a history");
        assert_eq!((counts.answered, counts.operations()), (4, 4));
    }
}
