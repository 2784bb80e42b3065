//! A process: tasks that stand still together, and die together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::task::AbortHandle;

/// A process; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Life(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    paused: bool,
    dead: bool,
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    /// What a task of it panicked with.
    panic: Option<String>,
}

impl Life {
    /// Runs a task in the process.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if self.is_dead() {
            return;
        }
        let life = self.clone();
        let task = Box::pin(task);
        let handle = tokio::spawn(Lived { life, task }).abort_handle();
        let mut state = self.lock();
        state.tasks.retain(|task| !task.is_finished());
        state.tasks.push(handle);
    }

    /// Nothing of it runs until it is resumed.
    pub(crate) fn pause(&self) {
        self.lock().paused = true;
    }

    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        state.paused = false;
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// Ends it where it stands.
    pub(crate) fn kill(&self) {
        let mut state = self.lock();
        state.dead = true;
        let tasks = std::mem::take(&mut state.tasks);
        drop(state);
        tasks.iter().for_each(AbortHandle::abort);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// What went wrong in it that must never go wrong.
    pub(crate) fn panic(&self) -> Option<String> {
        self.lock().panic.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lived {
    life: Life,
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Future for Lived {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.life.lock();
        if state.paused {
            state.waiting.push(context.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        let polled = catch_unwind(AssertUnwindSafe(|| self.task.as_mut().poll(context)));
        polled.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| Some((*panic.downcast_ref::<&str>()?).to_owned()));
            let mut state = self.life.lock();
            state.panic = Some(text.unwrap_or_else(|| "a panic".to_owned()));
            Poll::Ready(())
        })
    }
}
