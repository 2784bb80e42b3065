//! Whether operations on one value can be put into an order that explains all answers and keeps real time: Wing and Gong's
//! search with Lowe's memory of what was tried. An answer that returns when another is called is concurrent with it.

use std::collections::{BTreeMap, HashSet};

use super::{Operation, Step};

/// Most states that are tried for a key before the answer is "too many to say", which is no success.
pub const STATES_MAX: usize = 5_000_000;

/// What the search found for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none.
    Violated,
    /// Not known after [`STATES_MAX`] states.
    Unknown,
}

/// The verdict for each key.
pub fn check(operations: &[Operation]) -> BTreeMap<String, Verdict> {
    let mut keys: BTreeMap<String, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        keys.entry(operation.key.clone())
            .or_default()
            .push(operation);
    }
    let judged = keys
        .into_iter()
        .map(|(key, operations)| (key, check_key(&operations)));
    judged.collect()
}

/// A call or a return in the order of time, in a list that operations are lifted out of.
struct Place {
    operation: usize,
    is_call: bool,
    before: usize,
    after: usize,
}

/// The timeline: entry 0 is its head, which is also its end.
struct Timeline {
    places: Vec<Place>,
    call_of: Vec<usize>,
    return_of: Vec<Option<usize>>,
}

type State<'a> = Option<&'a str>;

fn check_key(operations: &[&Operation]) -> Verdict {
    let mut timeline = Timeline::new(operations);
    let mut left = operations
        .iter()
        .filter(|operation| operation.returned.is_some())
        .count();
    let mut lifted = vec![0_u64; operations.len().div_ceil(64)];
    let mut tried: HashSet<(Vec<u64>, State<'_>)> = HashSet::new();
    let mut chosen: Vec<(usize, State<'_>)> = Vec::new();
    let mut state: State<'_> = None;
    let mut place = timeline.places[0].after;
    while left > 0 {
        let Place {
            operation,
            is_call,
            after,
            ..
        } = timeline.places[place];
        if is_call {
            if let Some(next) = apply(&operations[operation].step, state) {
                lifted[operation / 64] |= 1 << (operation % 64);
                if tried.insert((lifted.clone(), next)) {
                    if tried.len() > STATES_MAX {
                        return Verdict::Unknown;
                    }
                    chosen.push((operation, state));
                    state = next;
                    left -= usize::from(operations[operation].returned.is_some());
                    timeline.lift(operation);
                    place = timeline.places[0].after;
                    continue;
                }
                lifted[operation / 64] &= !(1 << (operation % 64));
            }
            place = after;
            continue;
        }
        // This operation returned before any order was found for it: the last choice was wrong.
        let Some((last, before)) = chosen.pop() else {
            return Verdict::Violated;
        };
        state = before;
        lifted[last / 64] &= !(1 << (last % 64));
        left += usize::from(operations[last].returned.is_some());
        timeline.put_back(last);
        place = timeline.places[timeline.call_of[last]].after;
    }
    Verdict::Linearizable
}

/// The state after a step; none when the step cannot have happened in this state.
fn apply<'a>(step: &'a Step, state: State<'a>) -> Option<State<'a>> {
    match step {
        Step::Read(seen) => (seen.as_deref() == state).then_some(state),
        Step::Write(value) => Some(value.as_deref()),
    }
}

impl Timeline {
    fn new(operations: &[&Operation]) -> Self {
        let mut times: Vec<(u64, bool, usize)> = Vec::new();
        for (index, operation) in operations.iter().enumerate() {
            times.push((operation.call, false, index));
            times.extend(operation.returned.map(|returned| (returned, true, index)));
        }
        // At one time calls stand before returns.
        times.sort_unstable();
        let count = times.len() + 1;
        let mut timeline = Self {
            places: vec![Place {
                operation: 0,
                is_call: false,
                before: count - 1,
                after: 1 % count,
            }],
            call_of: vec![0; operations.len()],
            return_of: vec![None; operations.len()],
        };
        for (place, (_, is_return, operation)) in times.into_iter().enumerate() {
            let place = place + 1;
            if is_return {
                timeline.return_of[operation] = Some(place);
            } else {
                timeline.call_of[operation] = place;
            }
            timeline.places.push(Place {
                operation,
                is_call: !is_return,
                before: place - 1,
                after: (place + 1) % count,
            });
        }
        timeline
    }

    fn lift(&mut self, operation: usize) {
        for place in [Some(self.call_of[operation]), self.return_of[operation]]
            .into_iter()
            .flatten()
        {
            let Place { before, after, .. } = self.places[place];
            self.places[before].after = after;
            self.places[after].before = before;
        }
    }

    fn put_back(&mut self, operation: usize) {
        // The other way round than they were lifted.
        for place in [self.return_of[operation], Some(self.call_of[operation])]
            .into_iter()
            .flatten()
        {
            let Place { before, after, .. } = self.places[place];
            self.places[before].after = place;
            self.places[after].before = place;
        }
    }
}
