//! A value whose changes are waited for. Those who wait are woken in the order in which they began to, unlike by tokio's
//! `watch`, which draws lots: whole nodes that are simulated must do the same in every run.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// See the module.
pub(super) struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Clone + PartialEq> Watched<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            value: Mutex::new(value),
            changed: Notify::new(),
        }
    }

    pub(super) fn get(&self) -> T {
        self.lock().clone()
    }

    /// Changes the value, and wakes who waits if it is another one.
    pub(super) fn set(&self, value: T) {
        let mut place = self.lock();
        if *place != value {
            *place = value;
            drop(place);
            self.changed.notify_waiters();
        }
    }

    /// Waits until the value fits; answers it.
    pub(super) async fn wait_for(&self, mut fits: impl FnMut(&T) -> bool) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before the look: a change behind it is not missed.
            changed.as_mut().enable();
            let value = self.get();
            if fits(&value) {
                return value;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn who_waits_is_woken_in_order_and_only_by_what_fits() {
        let watched = Arc::new(Watched::new(0));
        let (woken_in, mut woken) = mpsc::unbounded_channel();
        for number in 0..20 {
            let (watched, woken_in) = (Arc::clone(&watched), woken_in.clone());
            tokio::spawn(async move {
                let value = watched.wait_for(|value| *value >= 2).await;
                woken_in.send((number, value)).expect("somebody listens");
            });
        }
        tokio::task::yield_now().await;
        watched.set(1);
        tokio::task::yield_now().await;
        assert!(woken.try_recv().is_err(), "1 fits nobody");
        watched.set(2);
        for number in 0..20 {
            assert_eq!(woken.recv().await, Some((number, 2)));
        }
    }

    #[tokio::test]
    async fn what_fits_already_is_not_waited_for() {
        let watched = Watched::new(5);
        assert_eq!(watched.wait_for(|value| *value == 5).await, 5);
    }
}
