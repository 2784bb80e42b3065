//! How a replica learns of records: from the consumer, and from the acknowledgements of its own records.
//!
//! Each offset is judged once and in order, whichever source reaches it first (the contiguity rule: an acknowledgement counts
//! only when it is the next offset, else it waits until the consumer has filled the gap).

use bytes::Bytes;
use kvcluster_crds::Offset;

use super::protocol::{Verdict, judge};
use super::{CAUGHT_UP_RECORDS, LAG_RECORDS_MAX, Output, SlotMachine, Token};
use crate::effect::{Applied, DedupEntry};
use crate::log::codec::{Body, Entry, Record, checksum};
use crate::seeded::{self, Bug};

impl SlotMachine {
    pub(super) fn read_record(
        &mut self,
        now_ns: u64,
        offset: Offset,
        bytes: &Bytes,
        out: &mut Vec<Output>,
    ) {
        if self.frozen.is_some() {
            return;
        }
        if let Some(expected) = self.unverified {
            return self.verify(offset, bytes, expected, out);
        }
        if offset < self.position.next_offset {
            return;
        }
        match Entry::read(bytes) {
            Ok(entry) => {
                self.observe(now_ns, offset, &entry, checksum(bytes), out);
                self.observe_acknowledged(now_ns, out);
            }
            Err(error) => {
                let slot = self.settings.slot;
                self.freeze(format!("record {offset} of slot {slot}: {error}"), out);
            }
        }
    }

    /// Compares the first record with the one that stood before the stored position.
    fn verify(&mut self, offset: Offset, bytes: &Bytes, expected: u64, out: &mut Vec<Output>) {
        let before = Offset(self.position.next_offset.0 - 1);
        if offset < before {
            return;
        }
        if offset == before && checksum(bytes) == expected {
            self.unverified = None;
            return;
        }
        let what = if offset > before {
            "is missing"
        } else {
            "is another than the one applied"
        };
        let reason = format!(
            "record {before} of the log {what}: the topic was emptied, trimmed or replaced; restore the topic, or remove \
             this node's schema and rebuild it"
        );
        self.freeze(reason, out);
    }

    /// The log ended at `end` a moment ago. Between the two limits a replica is what it was.
    pub(super) fn heard_of_end(&mut self, end: Offset) {
        let behind = end.0 - self.position.next_offset.0;
        if behind > LAG_RECORDS_MAX {
            self.caught_up = false;
        } else if behind <= CAUGHT_UP_RECORDS && self.unverified.is_none() && self.frozen.is_none()
        {
            self.caught_up = true;
        }
    }

    pub(super) fn reached_end(&mut self, out: &mut Vec<Output>) {
        if self.unverified.is_some() && self.frozen.is_none() {
            let next = self.position.next_offset;
            let reason = format!(
                "the log ends before record {next}, up to which it was applied: the topic was emptied or replaced; restore \
                 the topic, or remove this node's schema and rebuild it"
            );
            self.freeze(reason, out);
        }
        self.caught_up = self.frozen.is_none();
        if seeded::on(Bug::ReadBackTakenAsFinal)
            && let Some(leading) = self.leading.as_mut().filter(|leading| !leading.serves())
        {
            leading.take_as_none(out);
        }
    }

    /// Judges own records whose acknowledged place is the next one.
    pub(super) fn observe_acknowledged(&mut self, now_ns: u64, out: &mut Vec<Output>) {
        if self.unverified.is_some() || self.frozen.is_some() {
            return;
        }
        while let Some((offset, entry, sum)) = self.next_acknowledged() {
            self.observe(now_ns, offset, &entry, sum, out);
        }
    }

    fn next_acknowledged(&self) -> Option<(Offset, Entry, u64)> {
        let next = self.position.next_offset;
        let claim = self
            .candidate
            .as_ref()
            .and_then(|candidate| candidate.in_flight.as_ref());
        if let Some(claim) = claim.filter(|claim| claim.acknowledged == Some(next)) {
            return Some((next, claim.entry.clone(), claim.checksum));
        }
        let (entry, sum) = self.leading.as_ref()?.record_at(next)?;
        Some((next, entry, sum))
    }

    fn observe(
        &mut self,
        now_ns: u64,
        offset: Offset,
        entry: &Entry,
        sum: u64,
        out: &mut Vec<Output>,
    ) {
        let verdict = judge(&mut self.position, self.settings.log_id, offset, entry, sum);
        let valid = verdict == Verdict::Valid;
        *(if valid {
            &mut self.records_valid
        } else {
            &mut self.records_ignored
        }) += 1;
        let (effects, dedup) = match entry {
            Entry::Ours(record) if valid => (record.effects(), self.remember(offset, record)),
            Entry::Ours(_) | Entry::Foreign => (Vec::new(), None),
        };
        let position = self.position.clone();
        out.push(Output::Apply(Applied {
            slot: self.settings.slot,
            offset,
            effects,
            dedup,
            position,
        }));
        if valid {
            self.leader_read_at_ns = now_ns;
        }
        if let Entry::Ours(record) = entry {
            self.after(now_ns, offset, record, valid, out);
        }
    }

    /// Brings what is remembered of requests up to a record that counts.
    fn remember(&mut self, offset: Offset, record: &Record) -> Option<DedupEntry> {
        let time_ms = self.position.time_ms;
        self.dedup.pass_to(time_ms);
        let idempotency = record.idempotency()?;
        let entry = DedupEntry {
            key: idempotency.key.as_ref().into(),
            fingerprint: idempotency.fingerprint,
            version: offset,
            time_ms,
        };
        self.dedup.remember(&entry);
        Some(entry)
    }

    fn after(
        &mut self,
        now_ns: u64,
        offset: Offset,
        record: &Record,
        valid: bool,
        out: &mut Vec<Output>,
    ) {
        let (epoch, incarnation) = record.body.author();
        let own = incarnation == self.settings.incarnation;
        match &record.body {
            Body::Claim { .. } => {
                if valid && let Some(leading) = self.leading.take() {
                    leading.lost(out);
                }
                if valid {
                    self.vacant_since_ns = None;
                }
                if own && valid {
                    self.lead(now_ns, epoch);
                } else if own {
                    self.claim_ignored(record);
                }
            }
            Body::Command { seq, .. } | Body::Renew { seq, .. } | Body::Release { seq, .. } => {
                let leading = self
                    .leading
                    .as_mut()
                    .filter(|leading| leading.epoch == epoch);
                match leading {
                    Some(leading) if own && valid => {
                        let by_lease = self.settings.reads_by_lease;
                        leading.confirmed(now_ns, by_lease, *seq, offset, out);
                    }
                    Some(leading) if own => leading.ignored(*seq, out),
                    _ => {}
                }
            }
        }
    }

    pub(super) fn delivered(&mut self, token: Token, offset: Offset, out: &mut Vec<Output>) {
        let claim = self
            .candidate
            .as_mut()
            .and_then(|candidate| candidate.in_flight.as_mut());
        if let Some(claim) = claim.filter(|claim| claim.token == token) {
            claim.acknowledged = Some(offset);
        } else if let Some(leading) = &mut self.leading {
            leading.acknowledged(token, offset);
            if seeded::on(Bug::ContiguityUnchecked) {
                leading.take_as_done(token, offset, out);
            }
        }
    }

    pub(super) fn delivery_unknown(&mut self, token: Token, out: &mut Vec<Output>) {
        if let Some(candidate) = &mut self.candidate {
            candidate.in_flight.take_if(|claim| claim.token == token);
        }
        if let Some(leading) = self
            .leading
            .as_mut()
            .filter(|leading| leading.has_in_flight(token))
        {
            if seeded::on(Bug::UnknownTakenAsNone) {
                leading.take_as_none(out);
            }
            leading.step_down(out);
        }
    }
}
