//! What stands in other clothes in a text: decoded, unpacked, and looked at, some layers inside one another. What can't be decoded
//! is no prompt, and is left to those who look at data.

use std::convert::Infallible;

use super::{Rules, Stream};
use crate::encoded::run::{Event, MEMORY_BYTES};
use crate::encoded::{Code, Runs};
use crate::payload::coding::{Caps, Coding, Decoder};
use crate::payload::{CODES_MAX, CODINGS_MAX, LEVELS_MAX, Limits};

/// First bytes that tell a packed file.
const HEAD_BYTES: usize = 4;
/// Most bytes that all packed files of one request come to here: what is more is told as a packed file, and not heard.
const UNPACKED_BYTES_MAX: u64 = 16 << 20;
/// No more than so many for each byte of the request that stands for others, but at least so many.
const UNPACKED_RATIO_MAX: u64 = 64;
const UNPACKED_BYTES_MIN: u64 = 1 << 20;
/// Most bytes of a character that may be missing their last one.
const CUT_BYTES_MAX: usize = 3;

/// What is around a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    level: u8,
    codes: u8,
    codings: u8,
}

/// What a code, or a packed file, came to: one after another.
#[derive(Debug)]
pub(super) struct Layer {
    place: Place,
    stream: Stream,
    runs: Runs,
    inner: Option<Box<Layer>>,
    state: State,
    cut: Cut,
}

/// The beginning of a character whose rest comes next.
#[derive(Debug, Default)]
struct Cut {
    bytes: [u8; CUT_BYTES_MAX + 1],
    count: usize,
}

#[derive(Debug)]
enum State {
    /// Its first bytes, so many of them.
    Head([u8; HEAD_BYTES], usize),
    Plain,
    Packed(Box<Decoder>),
    /// Nothing more of it can be read.
    Broken,
}

/// What all layers of a request share.
pub(super) struct Shared<'a> {
    pub(super) rules: &'a Rules,
    /// Told of each rule that matched.
    pub(super) hit: &'a mut dyn FnMut(u16),
    /// Bytes that packed files came to so far.
    pub(super) unpacked: &'a mut u64,
    /// Bytes of the request's own that stood for others so far.
    pub(super) coded: &'a mut u64,
    pub(super) steps: &'a mut u64,
}

/// What a run stands for, handed to the layer that is inside `place`.
pub(super) fn of_run(
    event: Event<'_>,
    inner: &mut Option<Box<Layer>>,
    place: Place,
    shared: &mut Shared<'_>,
) {
    match event {
        Event::Begin(code) => {
            let place = place.within(u8::from(code != Code::Percent), 0);
            begins(inner, place, shared.rules);
        }
        Event::Piece(bytes) => {
            if place == Place::default() {
                *shared.coded += bytes.len() as u64;
            }
            inner.iter_mut().for_each(|inner| inner.push(bytes, shared));
        }
        Event::End => inner.iter_mut().for_each(|inner| inner.end(shared)),
        Event::Run(_) => {}
    }
}

/// Makes `inner` the next layer at that place; none where that is too deep.
fn begins(inner: &mut Option<Box<Layer>>, place: Option<Place>, rules: &Rules) {
    match (inner.as_mut(), place) {
        (_, None) => *inner = None,
        (Some(inner), Some(place)) => inner.again(place),
        (None, Some(place)) => *inner = Some(Box::new(Layer::new(place, rules))),
    }
}

// === impl State ===

impl Default for State {
    fn default() -> State {
        State::Head([0; HEAD_BYTES], 0)
    }
}

// === impl Cut ===

impl Cut {
    /// Tells `sink` what these bytes are, as text: of a character that they cut, when the rest has come.
    fn push(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&str)) {
        let mut rest = bytes;
        while let (1.., Some((next, behind))) = (self.count, rest.split_first()) {
            let Some(place) = self.bytes.get_mut(self.count) else { break };
            *place = *next;
            let character = std::str::from_utf8(self.bytes.get(..=self.count).unwrap_or_default());
            match character.map_err(|error| error.error_len()) {
                Ok(character) => {
                    sink(character);
                    (self.count, rest) = (0, behind);
                }
                Err(None) => (self.count, rest) = (self.count + 1, behind),
                // It never comes; and the next is no part of it.
                Err(Some(_)) => self.end(sink),
            }
        }
        let (whole, cut) = rest.split_at_checked(rest.len() - cut_bytes(rest)).unwrap_or((rest, &[]));
        if !whole.is_empty() {
            sink(&String::from_utf8_lossy(whole));
        }
        if !cut.is_empty() {
            self.bytes.iter_mut().zip(cut).for_each(|(place, byte)| *place = *byte);
            self.count = cut.len();
        }
    }

    /// Ends it: what is cut stays so.
    fn end(&mut self, sink: &mut dyn FnMut(&str)) {
        if std::mem::take(&mut self.count) > 0 {
            sink("\u{fffd}");
        }
    }
}

/// How many bytes at the end are of a character that goes on.
fn cut_bytes(bytes: &[u8]) -> usize {
    let goes_on = |count: &usize| {
        let end = bytes.get(bytes.len().saturating_sub(*count)..).unwrap_or_default();
        let is_begun = end.first().is_some_and(|byte| *byte >= 0xc0);
        is_begun && std::str::from_utf8(end).is_err_and(|error| error.error_len().is_none())
    };
    (1..=CUT_BYTES_MAX.min(bytes.len())).find(goes_on).unwrap_or_default()
}

// === impl Place ===

impl Place {
    fn within(self, codes: u8, codings: u8) -> Option<Place> {
        let Place { level, .. } = self;
        let place = Place { level: level + 1, codes: self.codes + codes, codings: self.codings + codings };
        let is_near = level < LEVELS_MAX && place.codes <= CODES_MAX && place.codings <= CODINGS_MAX;
        is_near.then_some(place)
    }
}

// === impl Layer ===

impl Layer {
    fn new(place: Place, rules: &Rules) -> Layer {
        let state = State::default();
        let cut = Cut::default();
        Layer { place, stream: Stream::new(rules), runs: Runs::default(), inner: None, state, cut }
    }

    /// Bytes of memory that it may take.
    pub(super) fn memory_bytes(&self, rules: &Rules) -> usize {
        let packed = if let State::Packed(decoder) = &self.state { decoder.memory_bytes() } else { 0 };
        let inner = self.inner.as_ref().map_or(0, |inner| inner.memory_bytes(rules));
        size_of::<Layer>() + rules.steps() * size_of::<u32>() + MEMORY_BYTES + packed + inner
    }

    fn again(&mut self, place: Place) {
        (self.place, self.state, self.cut.count) = (place, State::default(), 0);
        self.runs.clear();
    }

    fn push(&mut self, bytes: &[u8], shared: &mut Shared<'_>) {
        let State::Head(head, known) = &mut self.state else { return self.read(bytes, shared) };
        let room = head.get_mut(*known..).unwrap_or_default();
        let (first, rest) = bytes.split_at_checked(room.len().min(bytes.len())).unwrap_or((bytes, &[]));
        room.iter_mut().zip(first).for_each(|(place, byte)| *place = *byte);
        *known += first.len();
        if *known == HEAD_BYTES {
            self.settle(shared);
            self.read(rest, shared);
        }
    }

    /// Decides what it is, by its first bytes.
    fn settle(&mut self, shared: &mut Shared<'_>) {
        let State::Head(head, known) = self.state else { return };
        self.state = State::Plain;
        let head = head.get(..known).unwrap_or_default();
        if let Some(coding) = Coding::seen(head) {
            let place = self.place.within(0, 1);
            begins(&mut self.inner, place, shared.rules);
            let ratio_max = Limits::default().ratio_max;
            let caps = Caps { bytes_max: UNPACKED_BYTES_MAX, ratio_max };
            self.state = match place {
                Some(_) => State::Packed(Box::new(Decoder::new(coding, caps))),
                None => State::Broken,
            };
        }
        self.read(head, shared);
    }

    fn read(&mut self, bytes: &[u8], shared: &mut Shared<'_>) {
        let Layer { place, stream, runs, inner, state, cut } = self;
        match state {
            State::Head(..) | State::Broken => {}
            State::Plain => {
                cut.push(bytes, &mut |text| {
                    *shared.steps += stream.push(text, shared.rules, &mut shared.hit, &mut |_| {});
                });
                let Ok(()) = runs.push(bytes, &mut |event| {
                    of_run(event, inner, *place, shared);
                    Ok::<(), Infallible>(())
                });
            }
            State::Packed(decoder) => {
                let unpacked = decoder.push(bytes, &mut |bytes| hears(bytes, inner, shared));
                if unpacked.is_err() {
                    *state = State::Broken;
                }
            }
        }
    }

    fn end(&mut self, shared: &mut Shared<'_>) {
        self.settle(shared);
        let Layer { place, stream, runs, inner, state, cut } = self;
        if let State::Packed(decoder) = state {
            // What was cut off has been heard, as far as it came.
            let _ = decoder.finish(&mut |bytes| hears(bytes, inner, shared));
        }
        if matches!(state, State::Packed(_) | State::Broken) {
            inner.iter_mut().for_each(|inner| inner.end(shared));
        }
        let Ok(()) = runs.finish(&mut |event| {
            of_run(event, inner, *place, shared);
            Ok::<(), Infallible>(())
        });
        cut.end(&mut |text| {
            *shared.steps += stream.push(text, shared.rules, &mut shared.hit, &mut |_| {});
        });
        *shared.steps += stream.finish(shared.rules, &mut shared.hit);
        *state = State::default();
    }
}

/// What a packed file came to.
fn hears(
    bytes: &[u8],
    inner: &mut Option<Box<Layer>>,
    shared: &mut Shared<'_>,
) -> Result<(), crate::payload::Unreadable> {
    *shared.unpacked += bytes.len() as u64;
    let fair = shared.coded.saturating_mul(UNPACKED_RATIO_MAX);
    if *shared.unpacked > fair.clamp(UNPACKED_BYTES_MIN, UNPACKED_BYTES_MAX) {
        return Err(crate::payload::Unreadable::TooLarge);
    }
    inner.iter_mut().for_each(|inner| inner.push(bytes, shared));
    Ok(())
}
