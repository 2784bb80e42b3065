//! A node's end of the log: its producer, which sends until it knows a record's fate, and the wire between.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kvcluster_crds::{Offset, SlotId};
use kvcluster_node::log::codec::RECORD_BYTES_MAX;
use kvcluster_node::log::settings::MESSAGE_TIMEOUT_MS;
use kvcluster_node::log::{Follow, Log, Sink};
use kvcluster_node::slot::{Input, Token};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::partition::Origin;
use super::{Shared, State, reader};

/// How much longer than the longest record a request may be before the producer refuses it, bytes.
const REQUEST_SLACK_BYTES: usize = 100_000;

/// Which way nothing passes between a client and the brokers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// Everything passes.
    #[default]
    Nothing,
    /// The brokers hear nothing.
    Requests,
    /// The brokers hear everything, and the client hears nothing.
    Answers,
    /// Neither hears the other.
    Both,
}

impl Cut {
    pub(super) fn holds_requests(self) -> bool {
        matches!(self, Self::Requests | Self::Both)
    }

    fn holds_answers(self) -> bool {
        matches!(self, Self::Answers | Self::Both)
    }
}

/// A record whose fate is not known.
struct Pending {
    slot: SlotId,
    token: Token,
    origin: Origin,
    bytes: Bytes,
    until: Instant,
}

/// One client as the brokers and the wire know it. A process that is killed leaves it behind, with what it had sent.
pub(super) struct Client {
    life: u64,
    sent: u64,
    pending: VecDeque<Pending>,
    requests: VecDeque<(Instant, SlotId, Origin, Bytes)>,
    answers: VecDeque<(Instant, Origin, i64)>,
    sinks: BTreeMap<SlotId, Sink>,
    pub(super) cut: Cut,
    answers_twice: bool,
    news: Arc<Notify>,
}

/// The product's view of a client; it ends with this.
pub struct SimLog {
    shared: Arc<Shared>,
    client: usize,
    memory_is_full: Arc<dyn Fn() -> bool + Send + Sync>,
    readers: Mutex<Vec<(SlotId, AbortHandle)>>,
}

impl SimLog {
    pub(super) fn new(
        shared: &Arc<Shared>,
        memory_is_full: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> Self {
        let mut state = shared.lock();
        let client = state.clients.len();
        let news = Arc::new(Notify::new());
        state.producers += 1;
        let life = state.producers;
        state.clients.push(Client {
            life,
            sent: 0,
            pending: VecDeque::new(),
            requests: VecDeque::new(),
            answers: VecDeque::new(),
            sinks: BTreeMap::new(),
            cut: Cut::Nothing,
            answers_twice: false,
            news: Arc::clone(&news),
        });
        drop(state);
        tokio::spawn(carry(Arc::clone(shared), client, news));
        Self {
            shared: Arc::clone(shared),
            client,
            memory_is_full,
            readers: Mutex::new(Vec::new()),
        }
    }

    /// From now on nothing passes this way; what is under way waits.
    pub fn cut(&self, cut: Cut) {
        self.with(|client| client.cut = cut);
    }

    /// Everything passes again, and what waited goes on.
    pub fn heal(&self) {
        self.cut(Cut::Nothing);
        self.shared.changed.notify_waiters();
    }

    /// Everything passes again; what was under way is lost with its connection, and sent again by who still waits for a fate.
    pub fn heal_anew(&self) {
        let mut state = self.shared.lock();
        let delay = state.draw_request();
        let client = &mut state.clients[self.client];
        client.cut = Cut::Nothing;
        client.answers.clear();
        client.requests.clear();
        client.send_again(None, delay);
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Whether every answer of the brokers comes twice.
    pub fn set_answers_twice(&self, twice: bool) {
        self.with(|client| client.answers_twice = twice);
    }

    /// Another producer takes the place of this one: the fates of what is in flight are unknown for ever. What was sent may
    /// still arrive.
    pub fn give_up(&self) {
        let mut state = self.shared.lock();
        state.producers += 1;
        let life = state.producers;
        let client = &mut state.clients[self.client];
        client.life = life;
        for pending in std::mem::take(&mut client.pending) {
            client.tell(pending.slot, unknown(pending.token));
        }
    }

    /// What was sent and has not arrived at a broker is lost.
    pub fn lose_requests(&self) {
        self.with(|client| client.requests.clear());
    }

    fn with<R>(&self, change: impl FnOnce(&mut Client) -> R) -> R {
        let mut state = self.shared.lock();
        let client = &mut state.clients[self.client];
        let answer = change(client);
        client.news.notify_one();
        answer
    }
}

impl Log for SimLog {
    fn follow(&self, slots: Vec<Follow>) {
        for follow in slots {
            let (slot, sink) = (follow.slot, follow.sink.clone());
            let before = self.with(|client| client.sinks.insert(slot, sink));
            // Once more after it was told that it is behind.
            let same = |before: &Sink| before.fates.same_channel(&follow.sink.fates);
            assert!(
                before.as_ref().is_none_or(same),
                "slot {slot} is followed twice"
            );
            let full = Arc::clone(&self.memory_is_full);
            let task = reader::read(Arc::clone(&self.shared), self.client, follow, full);
            let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            readers.push((slot, tokio::spawn(task).abort_handle()));
        }
    }

    fn unfollow(&self, slot: SlotId) {
        self.with(|client| client.sinks.remove(&slot));
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, reader) in readers.extract_if(.., |(of, _)| *of == slot) {
            reader.abort();
        }
    }

    fn append(&self, slot: SlotId, token: Token, bytes: &Bytes) {
        let mut state = self.shared.lock();
        let delay = state.draw_request();
        let client = &mut state.clients[self.client];
        if bytes.len() > RECORD_BYTES_MAX + REQUEST_SLACK_BYTES {
            return client.tell(slot, unknown(token));
        }
        client.sent += 1;
        let origin = (client.life, client.sent);
        let until = Instant::now() + Duration::from_millis(u64::from(MESSAGE_TIMEOUT_MS));
        client.pending.push_back(Pending {
            slot,
            token,
            origin,
            bytes: bytes.clone(),
            until,
        });
        client.request(slot, origin, bytes.clone(), delay);
    }
}

impl Drop for SimLog {
    /// The process is gone: nobody reads, nobody is told. What it had sent is under way all the same.
    fn drop(&mut self) {
        let readers = self
            .readers
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for (_, reader) in readers.iter() {
            reader.abort();
        }
        self.with(|client| {
            client.pending.clear();
            client.sinks.clear();
        });
    }
}

fn unknown(token: Token) -> Input {
    Input::DeliveryUnknown { token }
}

impl Client {
    fn tell(&self, slot: SlotId, fate: Input) {
        // A task that is gone has nobody left to tell.
        if let Some(sink) = self.sinks.get(&slot) {
            let _ = sink.fates.send(fate);
        }
    }

    /// One connection keeps its order, whatever each delay is.
    fn request(&mut self, slot: SlotId, origin: Origin, bytes: Bytes, delay: Duration) {
        let before = self.requests.back().map(|(at, ..)| *at);
        let at = Some(Instant::now() + delay).max(before);
        let at = at.expect("one of them is some");
        self.requests.push_back((at, slot, origin, bytes));
        self.news.notify_one();
    }

    pub(super) fn answer(&mut self, origin: Origin, offset: i64, delay: Duration) {
        let before = self.answers.back().map(|(at, ..)| *at);
        let at = Some(Instant::now() + delay).max(before);
        let at = at.expect("one of them is some");
        for _ in 0..=u8::from(self.answers_twice) {
            self.answers.push_back((at, origin, offset));
        }
        self.news.notify_one();
    }

    /// Sends what is pending once more, of one slot or of all, in its old order.
    pub(super) fn send_again(&mut self, only: Option<SlotId>, delay: Duration) {
        let concerns = |slot: SlotId| only.is_none_or(|only| only == slot);
        let life = self.life;
        self.requests
            .retain(|(_, slot, origin, _)| !concerns(*slot) || origin.0 != life);
        let again: Vec<_> = self
            .pending
            .iter()
            .filter(|pending| concerns(pending.slot))
            .map(|pending| (pending.slot, pending.origin, pending.bytes.clone()))
            .collect();
        for (slot, origin, bytes) in again {
            self.request(slot, origin, bytes, delay);
        }
    }

    /// When something has to be carried next.
    fn due(&self) -> Option<Instant> {
        let requests = self.requests.front().filter(|_| !self.cut.holds_requests());
        let answers = self.answers.front().filter(|_| !self.cut.holds_answers());
        let times = [
            requests.map(|(at, ..)| *at),
            answers.map(|(at, ..)| *at),
            self.pending.front().map(|pending| pending.until),
        ];
        times.into_iter().flatten().min()
    }

    /// The client hears an answer; a second one, or one to a producer that is gone, says nothing new.
    fn hear(&mut self, origin: Origin, offset: i64) {
        let place = self
            .pending
            .iter()
            .position(|pending| pending.origin == origin);
        if let Some(pending) = place.and_then(|place| self.pending.remove(place)) {
            let offset = Offset(offset);
            let token = pending.token;
            self.tell(pending.slot, Input::Delivered { token, offset });
        }
    }
}

impl State {
    fn draw_request(&mut self) -> Duration {
        self.draw(self.delays.request)
    }

    /// Carries one thing that is due; whether records came to a partition.
    fn carry_one(&mut self, index: usize, now: Instant) -> bool {
        let client = &mut self.clients[index];
        if !client.cut.holds_answers()
            && let Some((_, origin, offset)) = client.answers.pop_front_if(|(at, ..)| *at <= now)
        {
            client.hear(origin, offset);
            return false;
        }
        if !client.cut.holds_requests()
            && let Some((_, slot, origin, bytes)) =
                client.requests.pop_front_if(|(at, ..)| *at <= now)
        {
            self.take(index, slot, origin, bytes);
            return true;
        }
        if let Some(late) = client.pending.pop_front_if(|late| late.until <= now) {
            client.tell(late.slot, unknown(late.token));
        }
        false
    }
}

/// Carries requests and answers of a client, for ever.
async fn carry(shared: Arc<Shared>, client: usize, news: Arc<Notify>) {
    loop {
        let due = shared.lock().clients[client].due();
        match due {
            None => news.notified().await,
            Some(at) if at > Instant::now() => {
                tokio::select! {
                    biased;
                    () = news.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                }
            }
            Some(_) => {
                let came = shared.lock().carry_one(client, Instant::now());
                if came {
                    shared.changed.notify_waiters();
                }
            }
        }
    }
}
