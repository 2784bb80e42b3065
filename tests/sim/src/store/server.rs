//! One schema of a PostgreSQL server in memory: what is committed, what a crash may take back, and what goes wrong next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kvcluster_crds::{Incarnation, Offset, SlotId};
use kvcluster_node::effect::{DedupEntry, Loaded, SlotPosition, Versioned};
use kvcluster_node::slot::dedup::is_old;
use kvcluster_node::store::StoreError;
use kvcluster_node::store::batch::{Batch, SlotStep};

use super::snapshots::{Begun, Restores};
use crate::log::Range;

/// A step of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The owner's row is locked and read.
    Owner,
    /// The slots' offsets are moved.
    Offsets,
    /// Rows are written.
    Rows,
    /// Rows are deleted.
    Deletes,
    /// The transaction is committed.
    Commit,
}

/// How a step goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// PostgreSQL answers with an error.
    Refused,
    /// The connection is lost; nothing took effect.
    Lost,
    /// The step took effect, and its answer is lost with the connection.
    AnswerLost,
}

/// The tables of a schema.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Who writes.
    pub owner: Option<Incarnation>,
    /// `slot_state`.
    pub slots: BTreeMap<SlotId, SlotPosition>,
    /// `kv`.
    pub rows: BTreeMap<(SlotId, Bytes), Versioned>,
    /// `dedup`, by slot, time and version.
    pub dedup: BTreeMap<(SlotId, u64, i64), DedupEntry>,
    /// `restore`: slots of which a snapshot is being taken.
    pub restore: BTreeMap<SlotId, Begun>,
}

/// One schema on one server; clones are the same one.
#[derive(Clone)]
pub struct SimSchema(Arc<Mutex<Server>>);

pub(super) struct Server {
    /// What a crash may fall back to, oldest first: the last durable commit, and each one since. Never empty.
    committed: Vec<Tables>,
    /// Told to programs that look whether the schema is theirs.
    trouble: Option<String>,
    /// Connections of older sessions are dead.
    session: u64,
    connections: usize,
    away: bool,
    full: bool,
    fault: Option<(Step, How)>,
    latency: Range,
    restores: Restores,
    rng: fastrand::Rng,
}

/// A connection, until it is lost.
pub(super) struct Connection {
    pub(super) schema: SimSchema,
    pub(super) session: u64,
}

impl SimSchema {
    /// An empty schema.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Server {
            committed: vec![Tables::default()],
            trouble: None,
            session: 0,
            connections: 0,
            away: false,
            full: false,
            fault: None,
            latency: Range::default(),
            restores: Restores::default(),
            rng: fastrand::Rng::with_seed(seed),
        })))
    }

    /// How long each statement takes from now on; at first, no time.
    pub fn set_latency(&self, latency: Range) {
        self.lock().latency = latency;
    }

    /// What is committed, as anybody reads it.
    pub fn tables(&self) -> Tables {
        self.lock().now().clone()
    }

    /// What no crash takes back.
    pub fn durable_tables(&self) -> Tables {
        self.lock().committed.first().expect("never empty").clone()
    }

    /// Puts other tables in the place of these, for good, whatever programs think: what a restored backup does, or somebody
    /// with SQL. Connections live on.
    pub fn overwrite(&self, tables: Tables) {
        self.lock().committed = vec![tables];
    }

    /// What became of the snapshots that were taken into it.
    pub fn restores(&self) -> Restores {
        self.lock().restores
    }

    /// Counts one of them.
    pub(super) fn count_restore(&self, count: impl FnOnce(&mut Restores)) {
        count(&mut self.lock().restores);
    }

    /// Why the schema is not one that this program may use; none when it is.
    pub fn set_trouble(&self, trouble: Option<String>) {
        self.lock().trouble = trouble;
    }

    /// A server that is away loses its connections and takes no others.
    pub fn set_away(&self, away: bool) {
        let mut server = self.lock();
        server.away = away;
        if away {
            server.lose_connections();
        }
    }

    /// While the disk is full every statement that writes is refused.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// The next flush goes wrong at `step`; once.
    pub fn fail_next(&self, step: Step, how: How) {
        self.lock().fault = Some((step, how));
    }

    /// Whether a fault still waits for its step.
    pub fn has_fault(&self) -> bool {
        self.lock().fault.is_some()
    }

    /// Loses every connection; how many there were.
    pub fn lose_connections(&self) -> usize {
        self.lock().lose_connections()
    }

    /// A crash: every connection is lost, and with them the newest commits that did not wait for the disk, all but `kept` of
    /// them. Answers how many were lost.
    pub fn crash(&self, kept: usize) -> usize {
        let mut server = self.lock();
        let unsafe_commits = server.committed.len() - 1;
        server.committed.truncate(1 + kept);
        server.lose_connections();
        unsafe_commits.saturating_sub(kept)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Server> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn connect(&self) -> Result<Connection, StoreError> {
        self.pause().await;
        let mut server = self.lock();
        if server.away {
            return Err(unavailable("connection refused"));
        }
        server.connections += 1;
        let session = server.session;
        drop(server);
        let schema = self.clone();
        Ok(Connection { schema, session })
    }

    async fn pause(&self) {
        let latency = {
            let mut server = self.lock();
            let (least, most) = server.latency;
            let nanos = |time: Duration| u64::try_from(time.as_nanos()).expect("it is short");
            Duration::from_nanos(server.rng.u64(nanos(least)..=nanos(most)))
        };
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
    }
}

impl Server {
    pub(super) fn now(&self) -> &Tables {
        self.committed.last().expect("never empty")
    }

    fn lose_connections(&mut self) -> usize {
        self.session += 1;
        std::mem::take(&mut self.connections)
    }

    pub(super) fn commit(&mut self, tables: Tables, durable: bool) {
        if durable {
            self.committed.clear();
        }
        self.committed.push(tables);
    }

    /// The answer to a commit, unless that is to be lost.
    pub(super) fn answer_commit(&mut self) -> Result<(), StoreError> {
        if self.fault == Some((Step::Commit, How::AnswerLost)) {
            self.fault = None;
            self.lose_connections();
            return Err(unavailable("the connection was lost"));
        }
        Ok(())
    }

    pub(super) fn refuse_writes(&self) -> Result<(), StoreError> {
        if self.full {
            return Err(unavailable(
                "could not extend file: no space left on device",
            ));
        }
        Ok(())
    }

    pub(super) fn owned(&self, by: Incarnation) -> Result<(), StoreError> {
        if self.now().owner == Some(by) {
            return Ok(());
        }
        Err(StoreError::Fenced("simulated".to_owned()))
    }
}

impl Tables {
    pub(super) fn rows_of(&self, slot: SlotId) -> BTreeMap<Bytes, Versioned> {
        let rows = self.rows.range((slot, Bytes::new())..);
        let rows = rows.take_while(|((at, _), _)| *at == slot);
        let rows = rows.map(|((_, key), value)| (key.clone(), value.clone()));
        rows.collect()
    }

    /// What a slot whose time is `time_ms` still knows of requests.
    pub(super) fn remembered(&self, slot: SlotId, time_ms: u64) -> Vec<DedupEntry> {
        let of_slot = self.dedup.range((slot, 0, 0)..=(slot, u64::MAX, i64::MAX));
        let entries = of_slot.map(|(_, entry)| entry);
        let known = entries.filter(|entry| !is_old(entry.time_ms, time_ms));
        known.cloned().collect()
    }

    /// Takes what a step remembers, and forgets what is too old by then.
    fn remember(&mut self, step: &SlotStep) {
        for entry in &step.dedup {
            let place = (step.slot, entry.time_ms, entry.version.0);
            self.dedup.insert(place, entry.clone());
        }
        let time_ms = step.end.time_ms;
        self.dedup
            .retain(|(slot, at, _), _| *slot != step.slot || !is_old(*at, time_ms));
    }
}

/// What became of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Written,
    NotWhereExpected,
}

impl Connection {
    /// A statement on its way: fails when the connection is lost meanwhile.
    pub(super) async fn statement(&self) -> Result<(), StoreError> {
        self.schema.pause().await;
        if self.schema.lock().session != self.session {
            return Err(unavailable("the connection was lost"));
        }
        Ok(())
    }

    /// The fault of this step, if it waits for it; an answer that is lost is left to who commits.
    pub(super) async fn step(&self, step: Step) -> Result<(), StoreError> {
        self.statement().await?;
        let mut server = self.schema.lock();
        let Some((_, how)) = server.fault.filter(|(at, _)| *at == step) else {
            return Ok(());
        };
        match how {
            How::AnswerLost => return Ok(()),
            How::Lost => {
                server.lose_connections();
            }
            How::Refused => {}
        }
        server.fault = None;
        Err(unavailable("this step goes wrong"))
    }

    /// Takes the schema over.
    pub(super) async fn take_over(&self, incarnation: Incarnation) -> Result<(), StoreError> {
        self.statement().await?;
        let mut server = self.schema.lock();
        if let Some(trouble) = &server.trouble {
            return Err(StoreError::Schema(trouble.clone()));
        }
        server.refuse_writes()?;
        let mut tables = server.now().clone();
        tables.owner = Some(incarnation);
        server.commit(tables, true);
        Ok(())
    }

    /// The positions of slots, made where they are missing. Its commit waits for the disk.
    pub(super) async fn load(
        &self,
        incarnation: Incarnation,
        slots: &[SlotId],
    ) -> Result<Vec<(SlotId, Loaded)>, StoreError> {
        self.statement().await?;
        let mut server = self.schema.lock();
        server.owned(incarnation)?;
        server.refuse_writes()?;
        let mut tables = server.now().clone();
        let mut position = |slot: &SlotId| {
            let stored = tables
                .slots
                .entry(*slot)
                .or_insert_with(SlotPosition::start);
            (*slot, stored.clone())
        };
        let positions: Vec<_> = slots.iter().map(&mut position).collect();
        let loaded = positions.into_iter().map(|(slot, position)| {
            let dedup = tables.remembered(slot, position.time_ms);
            (slot, Loaded { position, dedup })
        });
        let loaded = loaded.collect();
        server.commit(tables, true);
        Ok(loaded)
    }

    /// The offsets of slots, with the owner looked at.
    pub(super) async fn offsets(
        &self,
        incarnation: Incarnation,
        slots: &[SlotId],
    ) -> Result<Vec<Option<Offset>>, StoreError> {
        self.step(Step::Owner).await?;
        let server = self.schema.lock();
        server.owned(incarnation)?;
        let tables = server.now();
        let offset = |slot: &SlotId| tables.slots.get(slot).map(|at| at.next_offset);
        Ok(slots.iter().map(offset).collect())
    }

    /// One flush. What its locks keep apart in PostgreSQL happens at one moment here, the commit.
    pub(super) async fn write(
        &self,
        incarnation: Incarnation,
        batch: &Batch,
        durable: bool,
    ) -> Result<Outcome, StoreError> {
        self.step(Step::Owner).await?;
        self.schema.lock().owned(incarnation)?;
        self.step(Step::Offsets).await?;
        self.schema.lock().refuse_writes()?;
        if batch.puts().next().is_some() {
            self.step(Step::Rows).await?;
        }
        if batch
            .steps
            .iter()
            .any(|step| step.deletes().next().is_some())
        {
            self.step(Step::Deletes).await?;
        }
        self.step(Step::Commit).await?;
        let mut server = self.schema.lock();
        server.owned(incarnation)?;
        server.refuse_writes()?;
        let mut tables = server.now().clone();
        for step in &batch.steps {
            let Some(stored) = tables.slots.get_mut(&step.slot) else {
                return Ok(Outcome::NotWhereExpected);
            };
            if stored.next_offset != step.expected {
                return Ok(Outcome::NotWhereExpected);
            }
            *stored = step.end.clone();
            for key in step.deletes() {
                tables.rows.remove(&(step.slot, key.clone()));
            }
            tables.remember(step);
        }
        for (slot, key, value, version) in batch.puts() {
            let value = value.clone();
            tables
                .rows
                .insert((slot, key.clone()), Versioned { value, version });
        }
        server.commit(tables, durable);
        server.answer_commit().map(|()| Outcome::Written)
    }

    /// One row.
    pub(super) async fn get(
        &self,
        slot: SlotId,
        key: &Bytes,
    ) -> Result<Option<Versioned>, StoreError> {
        self.statement().await?;
        let server = self.schema.lock();
        Ok(server.now().rows.get(&(slot, key.clone())).cloned())
    }

    /// The offset of a slot and its rows: one cut.
    pub(super) async fn cut(
        &self,
        slot: SlotId,
    ) -> Result<(Offset, BTreeMap<Bytes, Versioned>), StoreError> {
        self.statement().await?;
        let server = self.schema.lock();
        let tables = server.now();
        let stored = tables.slots.get(&slot);
        let stored = stored.ok_or_else(|| unavailable("the slot has no row"))?;
        Ok((stored.next_offset, tables.rows_of(slot)))
    }

    /// Whether it still lives.
    pub(super) fn lives(&self) -> bool {
        self.schema.lock().session == self.session
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut server = self.schema.lock();
        if server.session == self.session {
            server.connections -= 1;
        }
    }
}

pub(super) fn unavailable(why: &str) -> StoreError {
    StoreError::Unavailable(why.to_owned())
}
