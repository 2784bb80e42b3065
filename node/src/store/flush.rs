//! The flusher: one task that carries what is applied into PostgreSQL, and decides what became of it after a lost connection.
//!
//! ```text
//!            ┌────────── flush (25 ms or 1,000 rows apart; durably once a second) ◀─┐
//!  connect ──▶ reconcile ──▶ ready ──────────────────────────────────────────────────┘
//!     ▲  ▲        └─ slot_state cannot be ours, or the owner is another: the store fails for good
//!     └──┴── any error: pause, at most 1 s, for ever; the overlays keep everything
//! ```
//! Durability: an ordinary flush commits with `synchronous_commit=off`. Once a second a flush commits with `on` and moves or
//! proves the offset of *every* slot in the same transaction; what it proves is durable from its commit on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvcluster_crds::{Offset, SlotId};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::store::StoreError;
use crate::store::batch::Batch;
use crate::store::owner::check_ownership;
use crate::store::postgres::{connect, limited, schema_error, unavailable};
use crate::store::rows::slot_id;
use crate::store::shared::Shared;
use crate::store::{sql, write};

/// Rows that wait at which a flush begins at once.
pub(super) const FLUSH_ROWS_AT_ONCE: u64 = 1_000;
/// Time between the begins of two flushes below that: gathers rewrites of a key into one, and bounds the commits per second.
const FLUSH_GAP: Duration = Duration::from_millis(25);
/// Time between two durable flushes: bounds what is kept in memory after its commit, and how far the log's trim lags behind.
const DURABLE_GAP: Duration = Duration::from_secs(1);
/// First pause after an error.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause: a server that is back is used within a second.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Longest flush, seconds: above PostgreSQL's own statement timeout, so that its error is seen first.
const FLUSH_SECONDS: u64 = 30;
/// Longest reconcile, seconds.
const RECONCILE_SECONDS: u64 = 15;

/// Somebody who waits until everything is durable.
pub(super) type Waiting = oneshot::Sender<()>;

/// Starts the task; if it ends in a panic, the store has failed.
pub(super) fn start(
    shared: Arc<Shared>,
    options: PgConnectOptions,
    requests: mpsc::Receiver<Waiting>,
) {
    let flusher = Flusher {
        shared: Arc::clone(&shared),
        options,
        requests,
        waiting: Vec::new(),
        connection: None,
        pace: Pace::new(Instant::now()),
        first_slot: 0,
    };
    let task = tokio::spawn(flusher.run());
    tokio::spawn(async move {
        if let Err(error) = task.await {
            shared.fail(schema_error(format!("the flusher died: {error}")));
        }
    });
}

struct Flusher {
    shared: Arc<Shared>,
    options: PgConnectOptions,
    requests: mpsc::Receiver<Waiting>,
    waiting: Vec<Waiting>,
    connection: Option<PgConnection>,
    pace: Pace,
    /// The slot that is taken first, so that a full batch starves none.
    first_slot: usize,
}

impl Flusher {
    /// Ends when the store is dropped or has failed.
    async fn run(mut self) {
        loop {
            let due = self
                .pace
                .due(Instant::now(), self.shared.rows(), !self.waiting.is_empty());
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.waiting.push(request),
                    None => return,
                },
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep_until(due) => match self.step().await {
                    Ok(()) => self.went_well(),
                    Err(error @ StoreError::Unavailable(_)) => self.went_wrong(&error),
                    Err(error) => {
                        tracing::error!(%error, "the store cannot go on");
                        self.shared.fail(error);
                        return;
                    }
                },
            }
        }
    }

    fn went_well(&mut self) {
        self.pace.retry = None;
        if !self.shared.connected.swap(true, Ordering::Relaxed) {
            tracing::info!("PostgreSQL is back");
        }
    }

    fn went_wrong(&mut self, error: &StoreError) {
        self.connection = None;
        self.pace.failed(Instant::now());
        self.shared.metrics.store.flush_errors.inc();
        if self.shared.connected.swap(false, Ordering::Relaxed) {
            tracing::warn!(%error, "PostgreSQL does not take flushes; trying again");
        }
    }

    /// One flush, or the proof that nothing is to be done.
    async fn step(&mut self) -> Result<(), StoreError> {
        let begin = Instant::now();
        let shared = Arc::clone(&self.shared);
        let _flushing = shared.flushing.lock().await;
        let mut connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            self.connect().await?
        };
        let durable = self.pace.durable_is_due(begin) || !self.waiting.is_empty();
        let waiting = self.waiting.len();
        let (batch, whole) = self.batch(durable);
        if batch.steps.is_empty() {
            limited(RECONCILE_SECONDS, check(&mut connection, &shared)).await?;
        } else {
            let written = limited(
                FLUSH_SECONDS,
                write::write(&mut connection, &shared, &batch, durable),
            );
            if written.await? == write::Outcome::NotWhereExpected {
                limited(RECONCILE_SECONDS, reconcile(&mut connection, &shared)).await?;
                return Err(StoreError::Unavailable(
                    "slot_state was not where it was".to_owned(),
                ));
            }
            for step in &batch.steps {
                shared.with(step.slot, |overlay| {
                    overlay.mark_flushed(step.end.next_offset);
                });
                if durable {
                    shared.mark_durable(step.slot, step.end.next_offset);
                }
            }
        }
        shared.metrics.observe_flush(begin.elapsed(), &batch);
        self.connection = Some(connection);
        self.pace.flushed(begin, durable);
        if durable && whole {
            for waiting in self.waiting.drain(..waiting) {
                // Who does not wait any more does not need the answer.
                let _ = waiting.send(());
            }
        }
        Ok(())
    }

    /// Connects, and finds out where everything stands. A server that answers this can be read, also when it takes no flush.
    async fn connect(&self) -> Result<PgConnection, StoreError> {
        let shared = &self.shared;
        let work = async {
            let mut connection = connect(&self.options).await?;
            limited(RECONCILE_SECONDS, reconcile(&mut connection, shared)).await?;
            Ok(connection)
        };
        let connected = work.await;
        let is_reachable = connected.is_ok();
        shared.reachable.store(is_reachable, Ordering::Relaxed);
        connected
    }

    /// Gathers the next batch; says whether everything that is applied is in it. A durable one proves the slots that have
    /// nothing new, unless all is durable already.
    fn batch(&mut self, durable: bool) -> (Batch, bool) {
        let slots = self.shared.slots();
        let mut batch = Batch::default();
        let mut whole = true;
        let prove = durable && slots.iter().any(|&slot| self.is_ahead_of_durable(slot));
        if prove || self.shared.rows() > 0 {
            let first = self.first_slot % slots.len().max(1);
            self.first_slot = first + 1;
            for &slot in slots[first..].iter().chain(&slots[..first]) {
                let took = self
                    .shared
                    .with(slot, |overlay| batch.take(slot, overlay, prove));
                whole &= took.unwrap_or(true);
            }
            batch.sort();
        }
        (batch, whole)
    }

    fn is_ahead_of_durable(&self, slot: SlotId) -> bool {
        let ahead = |overlay: &mut crate::store::overlay::SlotOverlay| {
            overlay.applied().next_offset > overlay.durable()
        };
        self.shared.with(slot, ahead).unwrap_or(false)
    }
}

/// Takes PostgreSQL's offsets of all slots: decides commits of unknown outcome, and finds what a crash took back.
async fn reconcile(connection: &mut PgConnection, shared: &Shared) -> Result<(), StoreError> {
    let slots = shared.slots();
    let numbers: Vec<i32> = slots.iter().map(|slot| slot.partition()).collect();
    let mut tx = connection.begin().await.map_err(unavailable)?;
    check_ownership(&mut tx, shared).await?;
    let stored: Vec<(i32, i64)> = sqlx::query_as(sql::LOCK_OFFSETS)
        .bind(&numbers)
        .fetch_all(&mut *tx)
        .await
        .map_err(unavailable)?;
    tx.commit().await.map_err(unavailable)?;
    if stored.len() != slots.len() {
        return Err(schema_error("rows of slot_state are gone".to_owned()));
    }
    for (number, offset) in stored {
        let slot = slot_id(number)?;
        let reconciled = shared.with(slot, |overlay| {
            let before = overlay.flushed().next_offset;
            overlay.reconcile(Offset(offset)).map(|()| before)
        });
        match reconciled {
            Some(Ok(before)) if before.0 > offset => {
                tracing::warn!(%slot, from = %before, to = offset, "PostgreSQL lost commits in a crash; flushing again");
            }
            Some(Ok(_)) | None => {}
            Some(Err(error)) => return Err(schema_error(format!("slot {slot}: {error}"))),
        }
    }
    Ok(())
}

/// Proves that the connection lives and that the schema is still ours.
async fn check(connection: &mut PgConnection, shared: &Shared) -> Result<(), StoreError> {
    let mut tx = connection.begin().await.map_err(unavailable)?;
    check_ownership(&mut tx, shared).await?;
    tx.commit().await.map_err(unavailable)
}

/// When to flush. Pure.
struct Pace {
    last: Instant,
    last_durable: Instant,
    /// After an error: when to try again, and the pause before that.
    retry: Option<(Instant, Duration)>,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            last: now,
            last_durable: now,
            retry: None,
        }
    }

    fn due(&self, now: Instant, rows: u64, somebody_waits: bool) -> Instant {
        let due = if somebody_waits || rows >= FLUSH_ROWS_AT_ONCE {
            now
        } else if rows > 0 {
            self.last + FLUSH_GAP
        } else {
            self.last_durable + DURABLE_GAP
        };
        let due = due.min(self.last_durable + DURABLE_GAP);
        self.retry.map_or(due, |(at, _)| due.max(at))
    }

    fn durable_is_due(&self, now: Instant) -> bool {
        now >= self.last_durable + DURABLE_GAP
    }

    fn flushed(&mut self, begin: Instant, durable: bool) {
        self.last = begin;
        if durable {
            self.last_durable = begin;
        }
    }

    fn failed(&mut self, now: Instant) {
        let pause = self
            .retry
            .map_or(RETRY_PAUSE_MIN, |(_, pause)| pause * 2)
            .min(RETRY_PAUSE_MAX);
        self.retry = Some((now + pause, pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn flushes_are_apart_unless_many_rows_or_somebody_wait() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.flushed(start + 100 * MS, false);
        let now = start + 101 * MS;
        assert_eq!(pace.due(now, 1, false), start + 125 * MS);
        assert_eq!(pace.due(now, 999, false), start + 125 * MS);
        assert_eq!(pace.due(now, 1_000, false), now);
        assert_eq!(pace.due(now, 0, true), now);
        assert_eq!(pace.due(now, 0, false), start + DURABLE_GAP);
    }

    #[test]
    fn a_durable_flush_comes_every_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.flushed(start + 990 * MS, false);
        assert_eq!(pace.due(start + 991 * MS, 5, false), start + 1_000 * MS);
        assert!(!pace.durable_is_due(start + 999 * MS));
        assert!(pace.durable_is_due(start + 1_000 * MS));
        pace.flushed(start + 1_000 * MS, true);
        assert!(!pace.durable_is_due(start + 1_999 * MS));
    }

    #[test]
    fn pauses_grow_to_a_second_and_hold_everything_back() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pace.failed(start);
            pauses.push((pace.due(start, 5_000, true) - start).as_millis());
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_000, 1_000]);
    }
}
