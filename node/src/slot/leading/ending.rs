//! How what waits at a leader ends without its own answer: it is late, the leader steps down, or another epoch began.

use kvcluster_crds::{Offset, SlotId};

use super::{Duty, Joined, Leading, Staged};
use crate::service::SlotError;
use crate::slot::event::{Output, RequestId, Token};

impl Leading {
    /// Stops serving for good, because an outcome is not known. What is in flight stays undecided.
    pub(in crate::slot) fn step_down(&mut self, out: &mut Vec<Output>) {
        self.stop_reads(out);
        self.duty = Duty::SteppedDown;
        let slot = self.slot;
        self.staged_bytes = 0;
        for write in self.staged.drain(..) {
            let joined = write.joined.into_iter().map(|joined| joined.id);
            for id in std::iter::once(write.id).chain(joined) {
                out.push(refused(id, SlotError::NotLeader { slot }));
            }
        }
    }

    /// Another epoch began before what is in flight: none of it will ever count.
    pub(in crate::slot) fn lost(mut self, out: &mut Vec<Output>) {
        self.tenure.end();
        self.step_down(out);
        let slot = self.slot;
        for sent in self.in_flight {
            let first = sent.write.map(|(id, _)| id);
            let joined = sent.joined.into_iter().map(|joined| joined.id);
            for id in first.into_iter().chain(joined) {
                out.push(refused(id, SlotError::Lost { slot }));
            }
        }
    }

    /// Answers what has waited for longer than its deadline.
    pub(in crate::slot) fn expire(&mut self, now_ns: u64, out: &mut Vec<Output>) {
        let slot = self.slot;
        let mut late = Vec::new();
        for sent in &mut self.in_flight {
            let write = &mut sent.write;
            if let Some((id, _)) = write.take_if(|(_, deadline_ns)| *deadline_ns <= now_ns) {
                out.push(refused(id, SlotError::Unknown { slot }));
            }
            for joined in late_of(&mut sent.joined, now_ns) {
                let error = if joined.is_same {
                    SlotError::Unknown { slot }
                } else {
                    SlotError::LogUnavailable { slot }
                };
                out.push(refused(joined.id, error));
            }
            late.extend(sent.reads.extract_if(.., |read| read.deadline_ns <= now_ns));
        }
        late.extend(self.reads.extract_if(.., |read| read.deadline_ns <= now_ns));
        for read in late {
            out.push(read.answer(Err(SlotError::LogUnavailable { slot })));
        }
        let (bytes, unjudged) = (&mut self.staged_bytes, &mut self.unjudged);
        self.staged.retain_mut(|write| {
            let waits = write.expire(slot, now_ns, out);
            if !waits {
                *bytes -= write.bytes;
                if let Some(idempotency) = &write.idempotency {
                    unjudged.remove(&idempotency.key);
                }
            }
            waits
        });
    }

    /// Answers all that is in flight as if none of it could ever count.
    pub(in crate::slot) fn take_as_none(&mut self, out: &mut Vec<Output>) {
        let slot = self.slot;
        for (id, _) in self
            .in_flight
            .iter_mut()
            .filter_map(|sent| sent.write.take())
        {
            out.push(refused(id, SlotError::Lost { slot }));
        }
    }

    /// Answers a record's write by its acknowledgement alone.
    pub(in crate::slot) fn take_as_done(
        &mut self,
        token: Token,
        offset: Offset,
        out: &mut Vec<Output>,
    ) {
        let sent = self.in_flight.iter_mut().find(|sent| sent.token == token);
        if let Some((id, _)) = sent.and_then(|sent| sent.write.take()) {
            let answer = Ok(offset);
            out.push(Output::WriteAnswer { id, answer });
        }
    }

    pub(super) fn stop_reads(&mut self, out: &mut Vec<Output>) {
        self.clock.set(0);
        let slot = self.slot;
        let sent = self
            .in_flight
            .iter_mut()
            .flat_map(|sent| sent.reads.drain(..));
        for read in sent.chain(self.reads.drain(..)) {
            out.push(read.answer(Err(SlotError::NotLeader { slot })));
        }
    }
}

impl Staged {
    /// Answers who is late; whether somebody is left who wants the record.
    fn expire(&mut self, slot: SlotId, now_ns: u64, out: &mut Vec<Output>) -> bool {
        let late = |id| refused(id, SlotError::LogUnavailable { slot });
        out.extend(late_of(&mut self.joined, now_ns).map(|joined| late(joined.id)));
        if self.deadline_ns > now_ns {
            return true;
        }
        out.push(late(self.id));
        if let Some(next) = self.joined.iter().position(|joined| joined.is_same) {
            let next = self.joined.remove(next);
            (self.id, self.deadline_ns) = (next.id, next.deadline_ns);
            return true;
        }
        out.extend(self.joined.drain(..).map(|joined| late(joined.id)));
        false
    }
}

fn late_of(joined: &mut Vec<Joined>, now_ns: u64) -> impl Iterator<Item = Joined> {
    joined.extract_if(.., move |joined| joined.deadline_ns <= now_ns)
}

fn refused(id: RequestId, error: SlotError) -> Output {
    let answer = Err(error);
    Output::WriteAnswer { id, answer }
}
