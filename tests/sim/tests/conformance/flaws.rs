//! Shows that the cases can fail: a log and a store with one flaw each, over the simulated ones. Every flaw must be noticed,
//! and every case must notice some flaw.

mod log;
mod store;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic;
use std::sync::Once;

use crate::broker::sim::SimKafka;
use crate::database::sim::SimPostgres;
use crate::table::{ended, paused};
use crate::{log_cases, store_cases};

thread_local! {
    /// Whether a case of this thread is meant to fail: then nobody wants to read how.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

pub(crate) fn check_log_cases() {
    let cases = log_cases::all();
    let mut noticed = Noticed::default();
    for flaw in log::ALL {
        for case in &cases {
            let failed = fails(async {
                let broker = log::FlawedKafka::new(SimKafka::new(), flaw);
                ended((case.run)(&broker)).await.0.is_err()
            });
            noticed.add(&format!("{flaw:?}"), case.name, failed);
        }
    }
    noticed.check(cases.iter().map(|case| case.name));
}

pub(crate) fn check_store_cases() {
    let cases = store_cases::all();
    let mut noticed = Noticed::default();
    for flaw in store::ALL {
        for case in &cases {
            let failed = fails(async {
                let database = store::FlawedPostgres::new(SimPostgres::new(), flaw);
                ended((case.run)(&database)).await.0.is_err()
            });
            noticed.add(&format!("{flaw:?}"), case.name, failed);
        }
    }
    noticed.check(cases.iter().map(|case| case.name));
}

/// What each flaw was noticed by.
#[derive(Default)]
struct Noticed(BTreeMap<String, BTreeSet<&'static str>>);

impl Noticed {
    fn add(&mut self, flaw: &str, case: &'static str, failed: bool) {
        let by = self.0.entry(flaw.to_owned()).or_default();
        by.extend(failed.then_some(case));
    }

    fn check(&self, cases: impl Iterator<Item = &'static str>) {
        for (flaw, by) in &self.0 {
            println!("{flaw}: noticed by {} cases", by.len());
        }
        let unnoticed: Vec<_> = self.0.iter().filter(|(_, by)| by.is_empty()).collect();
        assert!(unnoticed.is_empty(), "nobody notices {unnoticed:?}");
        let blind: Vec<_> = cases
            .filter(|case| !self.0.values().any(|by| by.contains(case)))
            .collect();
        assert!(blind.is_empty(), "these notice nothing: {blind:?}");
    }
}

fn fails(case: impl Future<Output = bool>) -> bool {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let failed = paused().block_on(case);
    QUIET.set(false);
    failed
}
