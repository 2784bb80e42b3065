//! Reads one slot's partition for one client, as the product's consumer does: looks before it begins, never skips.

use std::sync::Arc;
use std::time::Duration;

use kvcluster_crds::Offset;
use kvcluster_node::log::Follow;
use kvcluster_node::slot::{Behind, Input};
use tokio::time::Instant;

use super::Shared;
use super::partition::Found;

/// Pause before a log that ends too early is looked at again.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// It is looked at so often before the slot freezes.
const LOOKS: u32 = 10;
/// Time between two looks whether memory has room.
const MEMORY_PAUSE: Duration = Duration::from_millis(20);
/// Time between two hints about the end of the log.
const END_PAUSE: Duration = Duration::from_secs(1);

struct Reader {
    shared: Arc<Shared>,
    client: usize,
    follow: Follow,
    place: i64,
    /// The end that was reached and told.
    caught_up_at: Option<i64>,
    /// Whether it waits for what comes next: that takes its time.
    waited: bool,
    next_hint: Instant,
}

/// Nobody listens any more.
struct Gone;

pub(super) async fn read(
    shared: Arc<Shared>,
    client: usize,
    follow: Follow,
    memory_is_full: Arc<dyn Fn() -> bool + Send + Sync>,
) {
    let mut reader = Reader {
        shared,
        client,
        place: follow.from.0,
        follow,
        caught_up_at: None,
        waited: true,
        next_hint: Instant::now() + END_PAUSE,
    };
    let mut next = reader.follow.next.0;
    while reader.begin(next).await {
        if reader.go_on(&*memory_is_full).await.is_err() {
            return;
        }
        reader.follow.records_max = i64::MAX;
        next = reader.place;
    }
}

impl Reader {
    /// Compares the place with what the log holds; whether reading can begin. If not, the slot was told why.
    async fn begin(&self, next: i64) -> bool {
        let mut looks = 0;
        loop {
            self.until_passing().await;
            let (start, end) = self.ends();
            let records_max = self.follow.records_max;
            let behind = |reason, least, can_replay| {
                Input::Behind(Behind {
                    reason,
                    least: Offset(least),
                    can_replay,
                })
            };
            let input = if self.place < start {
                let reason = format!(
                    "the log begins at record {start}, and record {} is needed: it was trimmed",
                    self.place
                );
                behind(reason, start + 1, false)
            } else if end < next {
                looks += 1;
                if looks < LOOKS {
                    tokio::time::sleep(LOOK_PAUSE).await;
                    continue;
                }
                Input::Freeze(format!(
                    "the log ends at record {end}, and {next} were applied: the topic was emptied or replaced"
                ))
            } else if end - next > records_max {
                let reason = format!("{} records are more than {records_max}", end - next);
                behind(reason, next + records_max, true)
            } else {
                return true;
            };
            let _ = self.tell(input).await;
            return false;
        }
    }

    /// Reads until the place is not there any more.
    async fn go_on(
        &mut self,
        memory_is_full: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<(), Gone> {
        loop {
            while memory_is_full() {
                tokio::time::sleep(MEMORY_PAUSE).await;
            }
            self.until_passing().await;
            self.hint();
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = {
                let mut state = self.shared.lock();
                state.partition(self.follow.slot).read(self.place)
            };
            match found {
                Found::Record(offset, bytes) => {
                    if std::mem::take(&mut self.waited) {
                        self.delay().await;
                    }
                    let offset = Offset(offset);
                    self.tell(Input::Record { offset, bytes }).await?;
                    self.place = offset.0 + 1;
                }
                Found::End(end) => {
                    self.place = end;
                    if self.caught_up_at != Some(end) {
                        self.tell(Input::CaughtUp).await?;
                        self.caught_up_at = Some(end);
                    }
                    self.waited = true;
                    // Whoever wakes up too early finds nothing and waits again.
                    let _ = tokio::time::timeout_at(self.next_hint, changed).await;
                }
                Found::OutOfRange => return Ok(()),
            }
        }
    }

    fn ends(&self) -> (i64, i64) {
        self.shared.lock().partition(self.follow.slot).ends()
    }

    /// Waits until something can be heard of the brokers.
    async fn until_passing(&self) {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.shared.lock().clients[self.client].cut == super::Cut::Nothing {
                return;
            }
            changed.await;
        }
    }

    async fn delay(&self) {
        let delay = {
            let mut state = self.shared.lock();
            let range = state.delays.read;
            state.draw(range)
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    /// A hint that may be lost.
    fn hint(&mut self) {
        let now = Instant::now();
        if now >= self.next_hint {
            self.next_hint = now + END_PAUSE;
            let (_, end) = self.ends();
            let _ = self.follow.sink.records.try_send(Input::End(Offset(end)));
        }
    }

    async fn tell(&self, input: Input) -> Result<(), Gone> {
        self.follow.sink.records.send(input).await.map_err(|_| Gone)
    }
}
