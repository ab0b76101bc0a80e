//! What a run of bytes holds in other clothes, handed to a layer of its own; and links that carry data. What is decoded only
//! because it might stand for something must never make a body unreadable, but by its size.

use super::layer::{Layer, Place};
use super::{Finding, LEVELS_MAX, Tally, Unreadable};
use crate::encoded::link::Found;
use crate::encoded::{Code, Links, Piece, Run, Runs, run};

/// Codes inside one another that are taken off.
pub(crate) const CODES_MAX: u8 = 4;
/// Shortest text that is told, bytes, and the least entropy of the letters it stands in, hundredths of a bit: lines of one
/// letter stand for text, too.
const TEXT_BYTES_MIN: u64 = 16;
const TEXT_ENTROPY: u32 = 200;
/// Shortest run that is told for its entropy alone, bytes that it stands for; signatures, digests and keys are shorter.
const OPAQUE_BYTES_MIN: u64 = 512;
/// Most texts of one body that are told one by one, to be counted with those of others: one that has more is found for them.
const PIECES_MAX: usize = 64;

/// The detectors.
#[derive(Debug, Default)]
pub(super) struct Disguise {
    runs: Runs,
    links: Links,
    inner: Option<Box<Layer>>,
}

// === impl Disguise ===

impl Disguise {
    /// Looks at what comes next of bytes at this place.
    pub(super) fn push(&mut self, bytes: &[u8], place: Place, tally: &mut Tally) -> Result<(), Unreadable> {
        self.links.push(bytes, &mut |found| of_link(found, tally));
        let Disguise { runs, inner, .. } = self;
        runs.push(bytes, &mut |event| of_run(event, inner, place, tally))
    }

    /// Ends them.
    pub(super) fn finish(&mut self, place: Place, tally: &mut Tally) -> Result<(), Unreadable> {
        self.links.finish(&mut |found| of_link(found, tally));
        let Disguise { runs, inner, .. } = self;
        runs.finish(&mut |event| of_run(event, inner, place, tally))
    }

    /// Forgets what was begun.
    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.links.clear();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let inner = self.inner.as_ref().map_or(0, |inner| size_of::<Layer>() + inner.memory_bytes());
        self.runs.memory_bytes() + self.links.memory_bytes() + inner
    }
}

fn of_link(found: Found, tally: &mut Tally) {
    tally.findings.insert(match found {
        Found::Data => Finding::LinkData,
        Found::ImageData => Finding::ImageLinkData,
    });
}

fn of_run(
    event: run::Event<'_>,
    inner: &mut Option<Box<Layer>>,
    place: Place,
    tally: &mut Tally,
) -> Result<(), Unreadable> {
    match event {
        run::Event::Begin(code) => {
            let codes = place.codes + u8::from(code != Code::Percent);
            if place.level >= LEVELS_MAX || codes > CODES_MAX {
                *inner = None;
                return Ok(());
            }
            let place = Place { level: place.level + 1, codes, ..place };
            match inner {
                Some(inner) if inner.is_at(place) => inner.again(),
                _ => *inner = Some(Box::new(Layer::decoded(place))),
            }
            Ok(())
        }
        run::Event::Piece(bytes) => inner.as_mut().map_or(Ok(()), |inner| inner.push(bytes, tally)),
        run::Event::End => inner.as_mut().map_or(Ok(()), |inner| inner.finish(tally)),
        run::Event::Run(run) => {
            tally.findings.extend(findings(&run, place));
            // What is inside it comes with it.
            if run.is_whole && place.codes == 0 && tally.pieces.len() < PIECES_MAX && is_text(&run) {
                let bytes = usize::try_from(run.letters).unwrap_or(usize::MAX);
                tally.pieces.push(Piece { key: run.key ^ run.letters, bytes, untold: 0 });
            }
            Ok(())
        }
    }
}

/// Whether it is text, and no part of a token: those are objects of JSON between dots, read, but not told.
fn is_text(run: &Run) -> bool {
    let is_code = run.code != Code::Percent;
    let is_token = run.is_dotted && run.is_object;
    is_code && run.text >= TEXT_BYTES_MIN && run.entropy >= TEXT_ENTROPY && !run.is_media && !is_token
}

/// What a run says of itself.
fn findings(run: &Run, place: Place) -> impl Iterator<Item = Finding> {
    let is_text = is_text(run);
    // Of what letters of each code have at most, all but a twentieth.
    let even = match run.code {
        Code::Base64 => 570,
        Code::Base32 => 475,
        Code::Hex => 380,
        Code::Percent => u32::MAX,
    };
    // Vectors of a model, which are numbers below 1.
    let is_vector = run.exponents * 4 >= run.decoded / 10 * 9;
    let is_opaque = run.decoded >= OPAQUE_BYTES_MIN
        && run.text < run.decoded / 4
        && run.entropy >= even
        && !run.is_media
        && !run.is_key
        && !is_vector;
    let found = [
        (run.is_key, Finding::PrivateKey),
        (is_text, Finding::EncodedText),
        (is_text && place.codes > 0, Finding::EncodedNested),
        (is_opaque, Finding::OpaqueRun),
    ];
    found.into_iter().filter(|(is, _)| *is).map(|(_, finding)| finding)
}

#[cfg(test)]
mod tests;
