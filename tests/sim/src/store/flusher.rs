//! Carries what is applied into the schema, as PostgreSQL's flusher does: some time apart, durably once a second, again and
//! again after errors, and never from a place that is not where it should be.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvcluster_crds::SlotId;
use kvcluster_node::store::StoreError;
use kvcluster_node::store::batch::Batch;
use kvcluster_node::store::overlay::SlotOverlay;
use tokio::time::Instant;

use super::server::{Connection, Outcome, unavailable};
use super::{Inner, lock};

/// Time between the begins of two flushes.
const GAP: Duration = Duration::from_millis(25);
/// Time between two durable ones.
const DURABLE_GAP: Duration = Duration::from_secs(1);
/// First and longest pause after an error.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

struct Flusher {
    inner: Arc<Inner>,
    connection: Option<Connection>,
    last: Instant,
    last_durable: Instant,
    retry: Option<(Instant, Duration)>,
}

/// Flushes until the store can never go on.
pub(super) async fn run(inner: Arc<Inner>) {
    let now = Instant::now();
    let mut flusher = Flusher {
        inner: Arc::clone(&inner),
        connection: None,
        last: now,
        last_durable: now,
        retry: None,
    };
    loop {
        let due = flusher.due();
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(due) => {}
            () = inner.wake.notified() => continue,
        }
        match flusher.step().await {
            Ok(()) => {
                flusher.retry = None;
                inner.connected.store(true, Ordering::SeqCst);
            }
            Err(StoreError::Unavailable(_)) => flusher.went_wrong(),
            Err(error) => {
                inner.connected.store(false, Ordering::SeqCst);
                inner.reachable.store(false, Ordering::SeqCst);
                lock(&inner.failure).get_or_insert(error);
                lock(&inner.waiting).clear();
                inner.has_failed.notify_waiters();
                return;
            }
        }
    }
}

impl Flusher {
    fn due(&self) -> Instant {
        let rows: usize = lock(&self.inner.overlays)
            .values()
            .map(SlotOverlay::unflushed_rows)
            .sum();
        let due = if !lock(&self.inner.waiting).is_empty() {
            Instant::now()
        } else if rows > 0 {
            self.last + GAP
        } else {
            self.last_durable + DURABLE_GAP
        };
        let due = due.min(self.last_durable + DURABLE_GAP);
        self.retry.map_or(due, |(at, _)| due.max(at))
    }

    fn went_wrong(&mut self) {
        self.connection = None;
        let pause = self.retry.map_or(RETRY.0, |(_, pause)| pause * 2);
        let pause = pause.min(RETRY.1);
        self.retry = Some((Instant::now() + pause, pause));
        self.inner.connected.store(false, Ordering::SeqCst);
    }

    async fn step(&mut self) -> Result<(), StoreError> {
        let begin = Instant::now();
        let inner = Arc::clone(&self.inner);
        let _flushing = inner.flushing.lock().await;
        let connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            self.connect().await?
        };
        let waiting = lock(&self.inner.waiting).len();
        let durable = waiting > 0 || begin >= self.last_durable + DURABLE_GAP;
        let (batch, whole) = self.batch(durable);
        let incarnation = self.inner.incarnation;
        if batch.steps.is_empty() {
            connection.offsets(incarnation, &[]).await?;
        } else if connection.write(incarnation, &batch, durable).await? == Outcome::NotWhereExpected
        {
            self.reconcile(&connection).await?;
            return Err(unavailable("slot_state was not where it was"));
        }
        for step in &batch.steps {
            let end = step.end.next_offset;
            self.inner.with(step.slot, |overlay| {
                overlay.mark_flushed(end);
                if durable {
                    overlay.mark_durable(end, |_, _| {});
                }
            });
        }
        self.connection = Some(connection);
        self.last = begin;
        if durable {
            self.last_durable = begin;
        }
        if durable && whole {
            for waiting in lock(&self.inner.waiting).drain(..waiting) {
                // Who does not wait any more does not need the answer.
                let _ = waiting.send(());
            }
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, StoreError> {
        let work = async {
            let connection = self.inner.schema.connect().await?;
            self.reconcile(&connection).await?;
            Ok(connection)
        };
        let connected = work.await;
        let is_reachable = connected.is_ok();
        self.inner.reachable.store(is_reachable, Ordering::SeqCst);
        connected
    }

    /// What is applied and not flushed; a durable batch proves every slot. Says whether all of it fitted.
    fn batch(&self, durable: bool) -> (Batch, bool) {
        let mut overlays = lock(&self.inner.overlays);
        let ahead = |overlay: &SlotOverlay| overlay.applied().next_offset > overlay.durable();
        let prove = durable && overlays.values().any(ahead);
        let rows = overlays
            .values()
            .any(|overlay| overlay.unflushed_rows() > 0);
        let mut batch = Batch::default();
        let mut whole = true;
        if prove || rows {
            for (slot, overlay) in overlays.iter_mut() {
                whole &= batch.take(*slot, overlay, prove);
            }
        }
        (batch, whole)
    }

    /// Takes the schema's offsets: decides commits of unknown outcome, and finds what a crash took back.
    async fn reconcile(&self, connection: &Connection) -> Result<(), StoreError> {
        let slots: Vec<SlotId> = lock(&self.inner.overlays).keys().copied().collect();
        let stored = connection.offsets(self.inner.incarnation, &slots).await?;
        for (slot, stored) in slots.into_iter().zip(stored) {
            let stored = stored
                .ok_or_else(|| StoreError::Schema("rows of slot_state are gone".to_owned()))?;
            let reconciled = self.inner.with(slot, |overlay| overlay.reconcile(stored));
            if let Some(Err(error)) = reconciled {
                return Err(StoreError::Schema(format!("slot {slot}: {error}")));
            }
        }
        Ok(())
    }
}
