//! The simulated store.

use std::cell::RefCell;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, LocalBoxFuture, ready};
use kvcluster_crds::{Incarnation, Offset, SlotId};
use kvcluster_node::store::StoreError;
use kvcluster_sim::store::{How, SimSchema, SimStore, Step, Tables};

use super::{Database, Openable, Pairs};

pub(crate) struct SimPostgres {
    schema: SimSchema,
    saved: RefCell<Vec<Tables>>,
}

impl SimPostgres {
    pub(crate) fn new() -> Self {
        Self {
            schema: SimSchema::new(1),
            saved: RefCell::default(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Tables)) -> LocalBoxFuture<'_, ()> {
        let mut tables = self.schema.tables();
        change(&mut tables);
        self.schema.overwrite(tables);
        ready(()).boxed_local()
    }
}

impl Openable for SimStore {
    fn open(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.open().boxed()
    }
}

impl Database for SimPostgres {
    fn store(&self, incarnation: u64) -> Arc<dyn Openable> {
        Arc::new(SimStore::new(&self.schema, Incarnation(incarnation)))
    }

    fn rows(&self, slot: u32) -> LocalBoxFuture<'_, Pairs> {
        let rows = self.schema.tables().rows.into_iter();
        let rows = rows.filter(|((at, _), _)| at.0 == slot);
        let pairs = rows.map(|((_, key), found)| (key, (found.value, found.version.0)));
        ready(pairs.collect()).boxed_local()
    }

    fn offset(&self, slot: u32) -> LocalBoxFuture<'_, i64> {
        let offset = self.schema.tables().slots[&SlotId(slot)].next_offset;
        ready(offset.0).boxed_local()
    }

    fn save(&self) -> LocalBoxFuture<'_, usize> {
        let mut saved = self.saved.borrow_mut();
        saved.push(self.schema.tables());
        ready(saved.len() - 1).boxed_local()
    }

    fn roll_back<'a>(
        &'a self,
        saved: usize,
        fits: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, bool> {
        let fits = fits();
        if fits {
            let mut tables = self.saved.borrow()[saved].clone();
            tables.owner = self.schema.tables().owner;
            self.schema.overwrite(tables);
            self.schema.lose_connections();
        }
        ready(fits).boxed_local()
    }

    fn lose_connections(&self) -> LocalBoxFuture<'_, usize> {
        ready(self.schema.lose_connections()).boxed_local()
    }

    fn fail_next(&self, step: Step, how: How) -> LocalBoxFuture<'_, ()> {
        self.schema.fail_next(step, how);
        ready(()).boxed_local()
    }

    fn has_fault(&self) -> LocalBoxFuture<'_, bool> {
        ready(self.schema.has_fault()).boxed_local()
    }

    fn set_full(&self, full: bool) -> LocalBoxFuture<'_, ()> {
        self.schema.set_full(full);
        ready(()).boxed_local()
    }

    fn set_away(&self, away: bool) {
        self.schema.set_away(away);
    }

    fn move_offset(&self, slot: u32, to: i64) -> LocalBoxFuture<'_, ()> {
        self.change(|tables| {
            let position = tables.slots.get_mut(&SlotId(slot));
            position.expect("it is loaded").next_offset = Offset(to);
        })
    }

    fn forget_slot(&self, slot: u32) -> LocalBoxFuture<'_, ()> {
        self.change(|tables| {
            tables.slots.remove(&SlotId(slot));
        })
    }

    fn use_otherwise(&self) -> LocalBoxFuture<'_, ()> {
        let trouble = "the schema holds tables that are not ours".to_owned();
        self.schema.set_trouble(Some(trouble));
        ready(()).boxed_local()
    }

    fn migrate_further(&self) -> LocalBoxFuture<'_, ()> {
        let trouble = "the schema is newer than this program".to_owned();
        self.schema.set_trouble(Some(trouble));
        ready(()).boxed_local()
    }
}
