//! What the log says about the writes of a history: which unknown ones took effect, and whether the answers were true.

use std::collections::{BTreeMap, HashMap};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::{Action, End, Ended, Operation, Step};
use crate::check::Rows;
use crate::processes;

/// Longest run of the log's decoder.
const DECODE_LIMIT: Duration = Duration::from_mins(5);

/// One change that counts, as the log says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Change {
    /// Its partition.
    pub partition: u32,
    /// Its record.
    pub offset: i64,
    /// The key.
    pub key: String,
    /// The value; none: deleted.
    pub value: Option<String>,
}

/// Every change of a log topic that counts, in the order of each partition.
pub fn changes(bootstrap: &str, topic: &str) -> Result<Vec<Change>> {
    let mut command = Command::new(processes::own_program("kvcluster-node")?);
    command.args(["decode-log", "--effects"]);
    command.args(["--bootstrap", bootstrap, "--topic", topic]);
    let text = processes::output(&mut command, DECODE_LIMIT)?;
    let parse =
        |line| serde_json::from_str(line).with_context(|| format!("decode-log printed {line:?}"));
    text.lines().map(parse).collect()
}

/// What a store holds that applies these changes and nothing else.
pub fn rebuilt(changes: &[Change]) -> Rows {
    let mut rows = Rows::new();
    for change in changes {
        match &change.value {
            Some(value) => rows.insert(change.key.clone(), value.clone()),
            None => rows.remove(&change.key),
        };
    }
    rows
}

/// The operations that had an effect or saw one, with times as tight as the log allows. Fails when an answer was not true:
/// an acknowledged write that is not in the log, or twice; a refused one that is; a change that nobody asked for.
pub fn resolve(operations: &[Ended], changes: &[Change]) -> Result<Vec<Operation>> {
    let mut places: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
    let mut deletes: BTreeMap<&str, usize> = BTreeMap::new();
    for (place, change) in changes.iter().enumerate() {
        match &change.value {
            Some(value) => places.entry((&change.key, value)).or_default().push(place),
            None => *deletes.entry(&change.key).or_default() += 1,
        }
    }
    // Place in the log → when it was acknowledged, of writes whose place is known.
    let mut acknowledged: BTreeMap<(&str, usize), u64> = BTreeMap::new();
    let mut resolved = Vec::new();
    let mut unknown = Vec::new();
    for operation in operations {
        let kept = |step, returned| Operation {
            client: operation.client,
            key: operation.action.key().to_owned(),
            step,
            call: operation.call,
            returned,
        };
        match (&operation.action, &operation.end) {
            (Action::Get { .. }, Some((returned, End::Ok(value)))) => {
                resolved.push(kept(Step::Read(value.clone()), Some(*returned)));
            }
            (Action::Get { .. }, _) => {}
            (Action::Put { key, value }, end) => {
                let found = places.remove(&(key.as_str(), value.as_str()));
                let found = found.unwrap_or_default();
                ensure!(
                    found.len() <= 1,
                    "{operation:?} is in the log {} times",
                    found.len()
                );
                match (end, found.first()) {
                    (Some((returned, End::Ok(_))), Some(place)) => {
                        acknowledged.insert((key, *place), *returned);
                        resolved.push(kept(Step::Write(Some(value.clone())), Some(*returned)));
                    }
                    (Some((_, End::Ok(_))), None) => {
                        bail!("{operation:?} was acknowledged and is not in the log")
                    }
                    (Some((_, End::Fail)), Some(place)) => {
                        bail!(
                            "{operation:?} was refused, and is in the log: {:?}",
                            changes[*place]
                        )
                    }
                    (Some((_, End::Info)) | None, Some(place)) => {
                        unknown.push((*place, kept(Step::Write(Some(value.clone())), None)));
                    }
                    (_, None) => {}
                }
            }
            (Action::Delete { key }, end) => {
                let left = deletes.entry(key).or_default();
                match end {
                    Some((returned, End::Ok(_))) => {
                        let fewer = left.checked_sub(1);
                        *left = fewer.with_context(|| {
                            format!("more deletes of {key:?} were acknowledged than are in the log")
                        })?;
                        resolved.push(kept(Step::Write(None), Some(*returned)));
                    }
                    Some((_, End::Fail)) => {}
                    Some((_, End::Info)) | None => {
                        unknown.push((usize::MAX, kept(Step::Write(None), None)));
                    }
                }
            }
        }
    }
    expect_asked_for(operations, &places, &deletes)?;
    for (place, mut operation) in unknown {
        // What stands before an acknowledged write of the same key took effect before that was acknowledged.
        if place != usize::MAX {
            let later = acknowledged.range((operation.key.as_str(), place)..);
            let later = later.take_while(|((key, _), _)| *key == operation.key);
            operation.returned = later.map(|(_, returned)| *returned).min();
        }
        resolved.push(operation);
    }
    resolved.sort_by_key(|operation| operation.call);
    Ok(resolved)
}

/// Every change of the history's keys was asked for by somebody.
fn expect_asked_for(
    operations: &[Ended],
    left: &HashMap<(&str, &str), Vec<usize>>,
    deletes_left: &BTreeMap<&str, usize>,
) -> Result<()> {
    let mut unknown_deletes: BTreeMap<&str, usize> = BTreeMap::new();
    for operation in operations {
        let count = unknown_deletes.entry(operation.action.key()).or_default();
        if matches!(operation.action, Action::Delete { .. })
            && matches!(operation.end, Some((_, End::Info)) | None)
        {
            *count += 1;
        }
    }
    if let Some((key, value)) = left
        .keys()
        .find(|(key, _)| unknown_deletes.contains_key(key))
    {
        bail!("the log has {key:?} = {value:?}, which nobody wrote");
    }
    for (key, unknown) in unknown_deletes {
        let left = deletes_left.get(key).copied().unwrap_or_default();
        ensure!(
            left <= unknown,
            "the log has {left} deletes of {key:?} that were not acknowledged; {unknown} were asked for"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &str, end: Option<(u64, End)>) -> Ended {
        let (key, value) = ("k".to_owned(), value.to_owned());
        Ended {
            action: Action::Put { key, value },
            client: 0,
            call: 1,
            end,
        }
    }

    fn delete(end: Option<(u64, End)>) -> Ended {
        let key = "k".to_owned();
        Ended {
            action: Action::Delete { key },
            client: 0,
            call: 1,
            end,
        }
    }

    fn log(values: &[Option<&str>]) -> Vec<Change> {
        let change = |(offset, value): (usize, Option<&str>)| Change {
            partition: 0,
            offset: i64::try_from(offset).expect("a test is short"),
            key: "k".to_owned(),
            value: value.map(str::to_owned),
        };
        values.iter().copied().enumerate().map(change).collect()
    }

    const OK: Option<(u64, End)> = Some((9, End::Ok(None)));

    #[test]
    fn an_unknown_write_is_decided_by_the_log() {
        let operations = [
            put("lost", None),
            put("kept", Some((5, End::Info))),
            put("later", OK),
        ];
        let found =
            resolve(&operations, &log(&[Some("kept"), Some("later")])).expect("true answers");
        assert_eq!(found.len(), 2);
        assert!(found.iter().all(|operation| operation.returned == Some(9)));
        let found = resolve(&operations[..2], &log(&[Some("kept")])).expect("true answers");
        assert_eq!(found[0].returned, None, "nothing bounds it");
    }

    #[test]
    fn untrue_answers_are_found() {
        let fail = || Some((9, End::Fail));
        let untrue = [
            (vec![put("v", OK)], log(&[])),
            (vec![put("v", OK)], log(&[Some("v"), Some("v")])),
            (vec![put("v", fail())], log(&[Some("v")])),
            (vec![put("v", OK)], log(&[Some("v"), Some("w")])),
            (vec![delete(OK)], log(&[])),
            (vec![delete(fail())], log(&[None])),
            (vec![delete(OK)], log(&[None, None])),
        ];
        for (operations, log) in untrue {
            assert!(
                resolve(&operations, &log).is_err(),
                "{operations:?}, {log:?}"
            );
        }
        let possible = [delete(OK), delete(None), put("v", fail())];
        for log in [log(&[None]), log(&[None, None])] {
            assert_eq!(resolve(&possible, &log).expect("possible").len(), 2);
        }
    }

    #[test]
    fn a_log_rebuilds_a_store() {
        let rows = rebuilt(&log(&[Some("a"), None, Some("b")]));
        assert_eq!(rows, Rows::from([("k".to_owned(), "b".to_owned())]));
        assert!(rebuilt(&log(&[Some("a"), None])).is_empty());
    }
}
