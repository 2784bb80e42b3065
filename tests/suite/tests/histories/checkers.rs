//! The two checkers themselves: known histories, and many small random ones, on which they must agree.

use std::collections::BTreeMap;

use anyhow::Result;
use fastrand::Rng;
use kvcluster_suite::history::linear::{self, Verdict};
use kvcluster_suite::history::porcupine::Porcupine;
use kvcluster_suite::history::{Operation, Step};

/// Random histories on which both must agree; about half of them are violations.
const RANDOM: usize = 4_000;

/// Name, whether it is linearizable, and its steps: `w` or `r`, the value (`-` is none), call and return (`?` is never).
const KNOWN: [(&str, bool, &str); 15] = [
    ("empty", true, "r - 1 2"),
    ("read what was written", true, "w a 1 2, r a 3 4"),
    ("overlapping", true, "w a 1 9, r a 2 3, r a 4 5"),
    ("touching is overlapping", true, "w a 1 2, r - 2 3"),
    (
        "unknown took effect late",
        true,
        "w a 1 ?, r - 2 3, r a 4 5",
    ),
    ("unknown took no effect", true, "w a 1 ?, r - 2 3"),
    ("deleted", true, "w a 1 2, w - 3 4, r - 5 6"),
    ("stale read", false, "w a 1 2, w b 3 4, r a 5 6"),
    ("lost write", false, "w a 1 2, r - 3 4"),
    ("from nowhere", false, "w a 1 2, r b 3 4"),
    ("before it was written", false, "r a 1 2, w a 3 4"),
    ("seen, then not", false, "w a 1 9, r a 2 3, r - 4 5"),
    (
        "unknown, seen, then not",
        false,
        "w a 1 ?, r a 2 3, r - 4 5",
    ),
    ("back from the dead", false, "w a 1 2, w - 3 4, r a 5 6"),
    (
        "readers disagree",
        false,
        "w a 1 20, w b 1 20, r a 2 3, r b 4 5, r a 6 7",
    ),
];

type Timed = (Step, u64, Option<u64>);

fn parse(steps: &str) -> Vec<Timed> {
    let step = |text: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [kind, value, call, returned] = words[..] else {
            panic!("{text:?} has four words");
        };
        let value = (value != "-").then(|| value.to_owned());
        let step = if kind == "w" {
            Step::Write(value)
        } else {
            Step::Read(value)
        };
        (step, call.parse().expect("a number"), returned.parse().ok())
    };
    steps.split(',').map(step).collect()
}

fn operations(key: &str, steps: Vec<Timed>) -> Vec<Operation> {
    let clients = (0..).zip(steps);
    clients
        .map(|(client, (step, call, returned))| Operation {
            client,
            key: key.to_owned(),
            step,
            call,
            returned,
        })
        .collect()
}

/// A few operations of random kinds and times over two values.
fn random(rng: &mut Rng) -> Vec<Timed> {
    let count = rng.usize(2..9);
    let operation = |rng: &mut Rng| {
        let value = [None, Some("a"), Some("b")][rng.usize(..3)].map(str::to_owned);
        let step = if rng.bool() {
            Step::Read(value)
        } else {
            Step::Write(value)
        };
        let call = rng.u64(..30);
        let is_unknown = rng.u32(..8) == 0 && matches!(step, Step::Write(_));
        let returned = (!is_unknown).then(|| call + rng.u64(..12));
        (step, call, returned)
    };
    (0..count).map(|_| operation(rng)).collect()
}

#[test]
fn known_histories_get_their_verdicts_and_random_ones_the_same_from_both() -> Result<()> {
    let mut all = Vec::new();
    let mut expected = BTreeMap::new();
    for (name, is_good, steps) in KNOWN {
        expected.insert(name.to_owned(), is_good);
        all.extend(operations(name, parse(steps)));
    }
    let mut rng = Rng::with_seed(1);
    for number in 0..RANDOM {
        all.extend(operations(&format!("random {number}"), random(&mut rng)));
    }
    let ours = linear::check(&all);
    let theirs = Porcupine::build()?.check(&all)?;
    assert_eq!(ours.len(), expected.len() + RANDOM);
    for (name, is_good) in expected {
        let verdict = if is_good {
            Verdict::Linearizable
        } else {
            Verdict::Violated
        };
        assert_eq!(
            (&ours[&name], &theirs[&name]),
            (&verdict, &verdict),
            "{name}"
        );
    }
    for (name, verdict) in &ours {
        let shown: Vec<_> = all
            .iter()
            .filter(|operation| operation.key == *name)
            .collect();
        assert_eq!(*verdict, theirs[name], "{name}: {shown:?}");
    }
    let violated = ours
        .values()
        .filter(|verdict| **verdict == Verdict::Violated)
        .count();
    println!(
        "checkers: {violated} of {} histories are violations; both agree on all",
        ours.len()
    );
    assert!(
        (RANDOM / 10..RANDOM * 9 / 10).contains(&violated),
        "random histories of one kind only"
    );
    Ok(())
}
