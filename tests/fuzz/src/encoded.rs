//! Targets of what is in other clothes: runs, links, and what targets and names carry.

use std::collections::BTreeSet;
use std::convert::Infallible;

use clawgress_inspect::encoded::run::{Event, Run};
use clawgress_inspect::encoded::{Links, Runs, header, host, target};

use super::pieces;

/// The same runs and the same decoded bytes, whole or in pieces, and no more of them than there are letters; the same links.
pub fn encoded(data: &[u8]) {
    let (whole, pieces) = pieces(data);
    let read = |pieces: &[&[u8]]| {
        let (mut runs, mut told, mut decoded) = (Runs::default(), Vec::<Run>::new(), Vec::<Vec<u8>>::new());
        let mut sink = |event: Event<'_>| {
            match event {
                Event::Begin(_) => decoded.push(Vec::new()),
                Event::Piece(bytes) => decoded.last_mut().expect("begun").extend_from_slice(bytes),
                Event::End => {}
                Event::Run(run) => told.push(run),
            }
            Ok::<(), Infallible>(())
        };
        for piece in pieces {
            let Ok(()) = runs.push(piece, &mut sink);
        }
        let Ok(()) = runs.finish(&mut sink);
        let (mut links, mut found) = (Links::default(), BTreeSet::new());
        pieces.iter().for_each(|piece| links.push(piece, &mut |one| found.extend([one])));
        links.finish(&mut |one| found.extend([one]));
        (told, decoded, found)
    };
    let cut: Vec<&[u8]> = whole.chunks(pieces.first().map_or(1, |first| first.len().max(1))).collect();
    let all = read(&[whole]);
    assert_eq!(all, read(&cut));
    let (told, decoded, _) = all;
    let letters: u64 = told.iter().filter(|run| run.is_whole).map(|run| run.letters).sum();
    assert!(letters <= whole.len() as u64 && decoded.concat().len() as u64 <= letters);
    for carried in [target(whole), header(whole), host(whole)] {
        assert!(carried.bytes() <= 2 * whole.len(), "{carried:?}");
    }
}
