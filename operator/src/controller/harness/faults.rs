//! Counts writes, and lets one of them go wrong.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// How a write goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The operator is killed before it is sent.
    KilledBefore,
    /// The operator is killed after it took effect.
    KilledAfter,
    /// It is refused, by a server that is in trouble.
    Refused,
    /// It is refused, since somebody else wrote at the same time.
    Conflict,
    /// It takes effect, and the answer is an error.
    AnswerLost,
    /// The operator is stopped in the middle of sending it; another one takes over and comes to rest; then it arrives.
    Late,
}

pub(super) const ALL: [Fault; 6] = [
    Fault::KilledBefore,
    Fault::KilledAfter,
    Fault::Refused,
    Fault::Conflict,
    Fault::AnswerLost,
    Fault::Late,
];

impl Fault {
    /// Whether the write happens at once.
    pub(super) fn takes_effect(self) -> bool {
        matches!(self, Self::KilledAfter | Self::AnswerLost)
    }
}

/// Shared by all that the operator writes to; clones are the same.
#[derive(Clone, Default)]
pub(super) struct Faults {
    state: Arc<Mutex<State>>,
    killed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    writes: Vec<String>,
    fault: Option<(usize, Fault)>,
}

impl Faults {
    /// The write number `at`, from 0, goes wrong.
    pub(super) fn set(&self, at: usize, fault: Fault) {
        self.lock().fault = Some((at, fault));
    }

    /// The same count of its own, without a fault.
    pub(super) fn fork(&self) -> Self {
        let writes = self.writes();
        let state = State {
            writes,
            fault: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            killed: Arc::default(),
        }
    }

    /// Counts anew, without a fault.
    pub(super) fn reset(&self) {
        *self.lock() = State::default();
    }

    /// What was written so far, in words.
    pub(super) fn writes(&self) -> Vec<String> {
        self.lock().writes.clone()
    }

    /// Whether the fault has happened.
    pub(super) fn has_struck(&self) -> bool {
        let state = self.lock();
        state.fault.is_some_and(|(at, _)| state.writes.len() > at)
    }

    /// Counts a write. An operator that is killed hears nothing more: its caller waits for ever.
    pub(super) fn around(&self, write: String) -> Option<Fault> {
        let mut state = self.lock();
        let number = state.writes.len();
        state.writes.push(write);
        let fault = state.fault.filter(|(at, _)| *at == number);
        fault.map(|(_, fault)| fault)
    }

    /// The end of the process that wrote.
    pub(super) async fn die<T>(&self) -> T {
        self.killed.notify_one();
        std::future::pending().await
    }

    /// Resolves when the operator was killed.
    pub(super) async fn killed(&self) {
        self.killed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
