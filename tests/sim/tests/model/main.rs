//! Exhaustive exploration of the slot protocol with the very state machine of the product: every order in which three
//! replicas, their clients, the log and the clock may act, within bounds.
//!
//! What must hold in every state: a write answered "done" stands in the log and counts, once, also when it is sent again; a
//! write answered "no effect" never counts, whatever arrives later; no operation shows a client an older state than an operation that had ended
//! before it began; a replica applies nothing that does not count; nobody freezes.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the numbers of a test are small"
)]

mod assignments;
#[cfg(feature = "seeded-bugs")]
mod seeded;
mod storage;
mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{Action, Limits, World};

const THREADS: usize = 2;
const SAFE: &str = "linearizable";

type Condition = fn(&Exploration, &World) -> bool;

/// One exploration: its bounds, and what must be seen to happen within them.
#[derive(Clone, Copy)]
struct Exploration {
    name: &'static str,
    limits: Limits,
    happens: &'static [(&'static str, Condition)],
}

const QUIET: Limits = Limits {
    writes: 0,
    reads: 0,
    suspicions: 0,
    hand_overs: 0,
    restarts: 0,
    retries: 0,
    mishaps: 0,
    ticks: 0,
    records: 5,
    nodes: 2,
    reads_by_lease: true,
    lease_ms: [300; world::NODES],
    clock_percent: [95, 105, 100],
};

const READS_BY_LEASE: Exploration = Exploration {
    name: "reads by lease while a rival claims",
    limits: Limits {
        writes: 1,
        reads: 1,
        suspicions: 1,
        ticks: 3,
        records: 4,
        ..QUIET
    },
    happens: &[
        ("a read by lease", |_, world| world.seen.read_by_lease),
        ("a read by record", |_, world| world.seen.read_by_record),
        ("a read refused late", |_, world| world.seen.read_refused),
        ("a write lost", |_, world| world.seen.write_lost),
    ],
};

const TWO_ELECTIONS: Exploration = Exploration {
    name: "two elections, one after the other",
    limits: Limits {
        writes: 1,
        reads: 1,
        suspicions: 2,
        ticks: 4,
        records: 4,
        clock_percent: [100; world::NODES],
        ..QUIET
    },
    happens: &[
        ("a read by lease", |_, world| world.seen.read_by_lease),
        ("a write lost", |_, world| world.seen.write_lost),
        ("a write done", |_, world| world.seen.writes_done == 1),
    ],
};

const RENEWED: Exploration = Exploration {
    name: "a leader that is heard of while a rival waits",
    limits: Limits {
        writes: 2,
        reads: 1,
        suspicions: 1,
        ticks: 2,
        records: 4,
        ..QUIET
    },
    happens: &[
        ("a read by lease", |_, world| world.seen.read_by_lease),
        ("two writes done", |_, world| world.seen.writes_done == 2),
    ],
};

const READS_BY_RECORD: Exploration = Exploration {
    name: "reads by record while a rival claims",
    limits: Limits {
        writes: 1,
        reads: 2,
        suspicions: 1,
        ticks: 2,
        reads_by_lease: false,
        ..QUIET
    },
    happens: &[
        ("a read by record", |_, world| world.seen.read_by_record),
        ("a read refused late", |_, world| world.seen.read_refused),
    ],
};

const MISHAPS: Exploration = Exploration {
    name: "lost, late and doubled records",
    limits: Limits {
        writes: 2,
        suspicions: 1,
        mishaps: 1,
        ticks: 2,
        ..QUIET
    },
    happens: &[
        ("a write lost", |_, world| world.seen.write_lost),
        ("two writes done", |_, world| world.seen.writes_done == 2),
    ],
};

const HAND_OVER: Exploration = Exploration {
    name: "leadership handed over",
    limits: Limits {
        writes: 1,
        reads: 1,
        hand_overs: 1,
        mishaps: 1,
        ..QUIET
    },
    happens: &[
        ("leadership handed over", |_, world| world.seen.hand_over),
        ("a write done", |_, world| world.seen.writes_done == 1),
        ("a read by lease", |_, world| world.seen.read_by_lease),
    ],
};

const HAND_OVER_READS: Exploration = Exploration {
    name: "reads while leadership is handed over",
    limits: Limits {
        writes: 1,
        reads: 2,
        hand_overs: 1,
        ticks: 2,
        ..QUIET
    },
    happens: &[
        ("leadership handed over", |_, world| world.seen.hand_over),
        ("a read by lease", |_, world| world.seen.read_by_lease),
        ("a read by record", |_, world| world.seen.read_by_record),
        ("a read refused late", |_, world| world.seen.read_refused),
    ],
};

const RESTARTS: Exploration = Exploration {
    name: "restarts, and leases that differ",
    limits: Limits {
        writes: 1,
        reads: 1,
        suspicions: 1,
        restarts: 1,
        ticks: 2,
        records: 4,
        lease_ms: [300, 150, 300],
        ..QUIET
    },
    happens: &[
        ("a read by lease", |_, world| world.seen.read_by_lease),
        ("a write done", |_, world| world.seen.writes_done == 1),
    ],
};

const RETRIES: Exploration = Exploration {
    name: "a write that is sent again",
    limits: Limits {
        writes: 1,
        retries: 1,
        suspicions: 1,
        mishaps: 1,
        ticks: 2,
        ..QUIET
    },
    happens: &[
        ("a retry that repeats", |_, world| world.seen.retry_repeats),
        ("a retry that takes effect", |_, world| {
            world.seen.retry_takes_effect
        }),
        ("a write lost", |_, world| world.seen.write_lost),
    ],
};

const RETRIES_AFTER_RESTARTS: Exploration = Exploration {
    name: "a write that is sent again to a node that came back",
    limits: Limits {
        mishaps: 0,
        restarts: 1,
        records: 4,
        ..RETRIES.limits
    },
    ..RETRIES
};

impl Model for Exploration {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.limits)]
    }

    fn actions(&self, state: &World, actions: &mut Vec<Action>) {
        state.actions(actions);
    }

    fn next_state(&self, state: &World, action: Action) -> Option<World> {
        let mut next = state.clone();
        next.act(action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let safe = Property::always(SAFE, |_, state: &World| state.wrong.is_none());
        let happens = self.happens.iter();
        let happens = happens.map(|(name, condition)| Property::sometimes(name, *condition));
        std::iter::once(safe).chain(happens).collect()
    }
}

impl Exploration {
    fn explore(self) -> impl Checker<Self> {
        let checker = self.checker().threads(THREADS);
        checker
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join()
    }

    fn expect_safe(self) {
        let began = std::time::Instant::now();
        let explored = self.explore();
        println!(
            "{}: {} states, {} transitions, {} deep, all of them explored in {:.0} s",
            self.name,
            explored.unique_state_count(),
            explored.state_count(),
            explored.max_depth(),
            began.elapsed().as_secs_f64()
        );
        if let Some(path) = explored.discovery(SAFE) {
            let wrong = path.last_state().wrong.clone();
            panic!("{}: {wrong:?} after {:?}", self.name, path.into_actions());
        }
        for (what, _) in self.happens {
            assert!(
                explored.discovery(what).is_some(),
                "{}: never {what}",
                self.name
            );
        }
    }
}

#[test]
fn reads_by_lease() {
    READS_BY_LEASE.expect_safe();
}

#[test]
fn reads_by_record() {
    READS_BY_RECORD.expect_safe();
}

#[test]
fn two_elections() {
    TWO_ELECTIONS.expect_safe();
}

#[test]
fn renewed() {
    RENEWED.expect_safe();
}

#[test]
fn mishaps() {
    MISHAPS.expect_safe();
}

#[test]
fn hand_over() {
    HAND_OVER.expect_safe();
}

#[test]
fn hand_over_reads() {
    HAND_OVER_READS.expect_safe();
}

#[test]
fn retries() {
    RETRIES.expect_safe();
}

#[test]
fn retries_after_restarts() {
    RETRIES_AFTER_RESTARTS.expect_safe();
}

#[test]
fn restarts() {
    RESTARTS.expect_safe();
}
