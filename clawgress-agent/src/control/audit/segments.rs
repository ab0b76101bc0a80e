//! Segments on disk: files of JSON lines, each named by the number of its first record. Only the last one
//! is written, only at its end. A line is a record's for good once its line break is there, whether or not
//! this version can read it: only what has none can be an append that was cut short.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clawgress_api::AuditRecord;

use super::RECORD_BYTES_MAX;

/// Extension of a segment.
const EXTENSION: &str = "jsonl";
/// Extension of what was cut off a segment's end.
const TORN: &str = "torn";
/// Digits of the number in a segment's name: any `u64`.
const DIGITS: usize = 20;

/// Sizes of the log.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// A segment of this size is closed.
    pub segment_bytes_max: u64,
    /// The oldest segments go when all together are larger.
    pub retention_bytes_max: u64,
}

/// What was not as it should be when the log was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// What was cut off the end of the last segment.
    pub torn: Option<Torn>,
    /// Whole lines of the last segment that are no records to this version; they stay where they are.
    pub unreadable: u64,
}

/// An append that was cut short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Torn {
    /// Bytes.
    pub bytes: u64,
    /// Where they are now.
    pub kept: PathBuf,
}

/// What [`read_line`] has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A whole one.
    Whole,
    /// A whole one, longer than any record; its text is not all there.
    TooLong,
    /// None, or the begin of one: the end of the file.
    End,
}

/// The log on disk, open for appending.
#[derive(Debug)]
pub(super) struct Segments {
    directory: PathBuf,
    bounds: Bounds,
    /// First record and size of each closed segment, oldest first.
    closed: Vec<(u64, u64)>,
    file: File,
    /// First record of the open segment.
    first: u64,
    /// Number of the next record.
    next: u64,
    /// Durable bytes of the open segment.
    bytes: u64,
    /// A write or sync failed: what is behind `bytes` is unknown and must go before anything is written.
    suspect: bool,
    /// Records that retention has removed, and nobody has asked about yet.
    removed: Option<Range<u64>>,
}

/// A segment's file.
pub(super) fn path(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:0DIGITS$}.{EXTENSION}"))
}

/// First record numbers of the segments in `directory`, oldest first.
pub(super) fn list(directory: &Path) -> io::Result<Vec<u64>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = Path::new(&name).file_stem().and_then(|s| s.to_str()).filter(|s| s.len() == DIGITS);
        if Path::new(&name).extension().is_some_and(|e| e == EXTENSION) {
            segments.extend(number.and_then(|n| n.parse::<u64>().ok()));
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

// === impl Segments ===

impl Segments {
    /// Opens the log. A line without an end is cut off and kept aside; the one after unreadable ones goes
    /// into a segment of its own, so that they are counted once.
    pub(super) fn open(directory: &Path, bounds: Bounds) -> io::Result<(Self, Damage)> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut numbers = list(directory)?;
        let mut first = numbers.pop().unwrap_or(0);
        // An empty segment that was begun and never used: its number may be one that the segment before
        // it has given out since.
        if let Some(before) = numbers.last().copied()
            && fs::metadata(path(directory, first))?.len() == 0
        {
            fs::remove_file(path(directory, first))?;
            numbers.pop();
            first = before;
        }
        let mut closed = Vec::with_capacity(numbers.len());
        for number in numbers {
            closed.push((number, fs::metadata(path(directory, number))?.len()));
        }
        let file = open_segment(directory, first, sync_directory)?;
        let Scanned { records, unreadable, whole } = scan(&file)?;
        let bytes = file.metadata()?.len();
        let torn = if bytes > whole { Some(cut(directory, first, &file, whole)?) } else { None };
        let mut segments = Segments {
            directory: directory.to_owned(),
            bounds,
            closed,
            file,
            first,
            next: first + records,
            bytes: whole,
            suspect: false,
            removed: None,
        };
        if unreadable > 0 {
            segments.rotate()?;
        }
        Ok((segments, Damage { torn, unreadable }))
    }

    /// Number of the next record.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Records that retention has removed since the last call.
    pub(super) fn take_removed(&mut self) -> Option<Range<u64>> {
        self.removed.take()
    }

    /// Appends whole lines; durable on return. On error none of them counts.
    pub(super) fn append(&mut self, lines: &[Vec<u8>]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        if self.suspect {
            self.file.set_len(self.bytes)?;
            self.file.sync_all()?;
            self.suspect = false;
        }
        let mut buffer = Vec::with_capacity(lines.iter().map(|l| l.len() + 1).sum());
        for line in lines {
            buffer.extend_from_slice(line);
            buffer.push(b'\n');
        }
        // After a failed sync the kernel may hold pages as clean that never reached the disk
        // (fsync(2)): nothing behind the last durable byte can be trusted then.
        self.suspect = true;
        self.file.seek(SeekFrom::Start(self.bytes))?;
        self.file.write_all(&buffer)?;
        self.file.sync_data()?;
        self.suspect = false;
        self.bytes += buffer.len() as u64;
        self.next += lines.len() as u64;
        if self.bytes >= self.bounds.segment_bytes_max {
            // The records are durable: trouble with the next segment is the next append's.
            if let Err(error) = self.rotate() {
                tracing::error!(%error, "cannot begin the next audit segment; going on with this one");
            }
        }
        Ok(())
    }

    /// Puts `file` in the place of the open segment's, as a disk that fails or recovers would.
    #[cfg(test)]
    pub(super) fn break_with(&mut self, file: File) {
        self.file = file;
    }

    fn rotate(&mut self) -> io::Result<()> {
        let file = open_segment(&self.directory, self.next, sync_directory)?;
        self.closed.push((self.first, self.bytes));
        self.file = file;
        self.first = self.next;
        self.bytes = 0;
        let mut total: u64 = self.closed.iter().map(|(_, bytes)| bytes).sum();
        while total > self.bounds.retention_bytes_max {
            let Some((first, bytes)) = self.closed.first().copied() else { break };
            fs::remove_file(path(&self.directory, first))?;
            // Rarely there.
            let _ = fs::remove_file(path(&self.directory, first).with_extension(TORN));
            self.closed.remove(0);
            total -= bytes;
            let end = self.closed.first().map_or(self.first, |(first, _)| *first);
            self.removed = Some(self.removed.as_ref().map_or(first, |r| r.start)..end);
            tracing::info!(first, bytes, "removed the oldest audit segment: the retention bound is reached");
        }
        Ok(())
    }
}

/// Opens the segment that begins with number `first`, making it if there is none.
fn open_segment(
    directory: &Path,
    first: u64,
    sync: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<File> {
    let path = path(directory, first);
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    // The file's name must be as durable as its content.
    if let Err(error) = sync(directory) {
        // An empty one that stays would be the last after a restart, while its numbers are given out to
        // records of the segment before it.
        if file.metadata()?.len() == 0 {
            fs::remove_file(&path)?;
        }
        return Err(error);
    }
    Ok(file)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Reads a line, without its end, of which at most [`RECORD_BYTES_MAX`] bytes are kept; with the number of
/// bytes that it has on disk.
pub(super) fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<(Line, u64)> {
    line.clear();
    let mut bytes = 0;
    loop {
        let buffer = reader.fill_buf()?;
        let end = buffer.iter().position(|b| *b == b'\n');
        let text = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
        let room = (RECORD_BYTES_MAX + 1).saturating_sub(line.len());
        line.extend(text.iter().take(room));
        let n = text.len() + usize::from(end.is_some());
        reader.consume(n);
        bytes += n as u64;
        let is_long = line.len() > RECORD_BYTES_MAX;
        match end {
            Some(_) => return Ok((if is_long { Line::TooLong } else { Line::Whole }, bytes)),
            None if n == 0 => return Ok((Line::End, bytes)),
            None => {}
        }
    }
}

#[derive(Default)]
struct Scanned {
    /// Whole lines.
    records: u64,
    /// Those of them that are no records to this version.
    unreadable: u64,
    /// Their bytes.
    whole: u64,
}

fn scan(file: &File) -> io::Result<Scanned> {
    let mut reader = BufReader::new(file);
    let mut scanned = Scanned::default();
    let mut line = Vec::new();
    loop {
        let (kind, bytes) = read_line(&mut reader, &mut line)?;
        if kind == Line::End {
            return Ok(scanned);
        }
        let is_record = kind == Line::Whole && serde_json::from_slice::<AuditRecord>(&line).is_ok();
        scanned.unreadable += u64::from(!is_record);
        scanned.records += 1;
        scanned.whole += bytes;
    }
}

/// Cuts off what is behind `whole` bytes, once it is safe in a file of its own.
fn cut(directory: &Path, first: u64, mut file: &File, whole: u64) -> io::Result<Torn> {
    let kept = path(directory, first).with_extension(TORN);
    // What an earlier start has put there stays.
    let mut aside = OpenOptions::new().append(true).create(true).mode(0o600).open(&kept)?;
    file.seek(SeekFrom::Start(whole))?;
    let bytes = io::copy(&mut file, &mut aside)?;
    aside.write_all(b"\n")?;
    aside.sync_all()?;
    sync_directory(directory)?;
    file.set_len(whole)?;
    file.sync_all()?;
    Ok(Torn { bytes, kept })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_whose_name_is_not_durable_does_not_stay() {
        let dir = tempfile::tempdir().expect("directory");
        let refuse = |_: &Path| Err(io::Error::other("the disk refuses"));
        open_segment(dir.path(), 7, refuse).expect_err("refused");
        assert!(list(dir.path()).expect("list").is_empty());
        fs::write(path(dir.path(), 7), "{}\n").expect("write");
        open_segment(dir.path(), 7, refuse).expect_err("refused");
        assert_eq!(list(dir.path()).expect("list"), [7], "one that holds records does");
    }

    #[test]
    fn lines_are_read_whatever_their_length() {
        let long = "x".repeat(RECORD_BYTES_MAX + 9);
        let exact = "y".repeat(RECORD_BYTES_MAX);
        let text = format!("a\n\n{long}\n{exact}\nb");
        let mut reader = BufReader::with_capacity(100, text.as_bytes());
        let mut line = Vec::new();
        let mut next =
            || read_line(&mut reader, &mut line).map(|(kind, n)| (kind, n, line.len())).expect("line");
        let most = RECORD_BYTES_MAX;
        assert_eq!(next(), (Line::Whole, 2, 1));
        assert_eq!(next(), (Line::Whole, 1, 0));
        assert_eq!(next(), (Line::TooLong, most as u64 + 10, most + 1));
        assert_eq!(next(), (Line::Whole, most as u64 + 1, most));
        assert_eq!(next(), (Line::End, 1, 1));
        assert_eq!(next(), (Line::End, 0, 0));
    }
}
