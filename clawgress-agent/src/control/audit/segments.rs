//! Segments on disk: files of JSON lines, each named by the number of its first record. Only the last one
//! is written, only at its end.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clawgress_api::AuditRecord;

use super::RECORD_BYTES_MAX;

/// Extension of a segment.
const EXTENSION: &str = "jsonl";
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

/// What was cut off the end of the last segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Torn {
    /// Lines, whole or not.
    pub records: u64,
    /// Bytes.
    pub bytes: u64,
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
    /// Opens the log; what is not a whole record at its end is cut off.
    pub(super) fn open(directory: &Path, bounds: Bounds) -> io::Result<(Self, Option<Torn>)> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut numbers = list(directory)?;
        let first = numbers.pop().unwrap_or(0);
        let mut closed = Vec::with_capacity(numbers.len());
        for number in numbers {
            closed.push((number, fs::metadata(path(directory, number))?.len()));
        }
        let file = open_segment(directory, first)?;
        let (records, whole) = scan(&file)?;
        let bytes = file.metadata()?.len();
        let torn = if bytes > whole { Some(cut(&file, whole, bytes)?) } else { None };
        let segments = Segments {
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
        Ok((segments, torn))
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
        let file = open_segment(&self.directory, self.next)?;
        self.closed.push((self.first, self.bytes));
        self.file = file;
        self.first = self.next;
        self.bytes = 0;
        let mut total: u64 = self.closed.iter().map(|(_, bytes)| bytes).sum();
        while total > self.bounds.retention_bytes_max {
            let Some((first, bytes)) = self.closed.first().copied() else { break };
            fs::remove_file(path(&self.directory, first))?;
            self.closed.remove(0);
            total -= bytes;
            let end = self.closed.first().map_or(self.first, |(first, _)| *first);
            self.removed = Some(self.removed.as_ref().map_or(first, |r| r.start)..end);
            tracing::info!(first, bytes, "removed the oldest audit segment: the retention bound is reached");
        }
        Ok(())
    }
}

fn open_segment(directory: &Path, first: u64) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path(directory, first))?;
    // The file's name must be as durable as its content.
    File::open(directory)?.sync_all()?;
    Ok(file)
}

/// Records from the start of `file` up to the first line that is none, and their bytes.
fn scan(file: &File) -> io::Result<(u64, u64)> {
    let mut reader = BufReader::new(file);
    let (mut records, mut bytes) = (0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = io::Read::take(&mut reader, RECORD_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)?;
        let Some((b'\n', record)) = line.split_last() else { return Ok((records, bytes)) };
        if serde_json::from_slice::<AuditRecord>(record).is_err() {
            return Ok((records, bytes));
        }
        records += 1;
        bytes += n as u64;
    }
}

fn cut(mut file: &File, whole: u64, bytes: u64) -> io::Result<Torn> {
    file.seek(SeekFrom::Start(whole))?;
    let mut records = 0;
    let mut reader = BufReader::new(file);
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            break;
        }
        records += buffer.iter().filter(|b| **b == b'\n').count() as u64;
        let n = buffer.len();
        reader.consume(n);
    }
    file.set_len(whole)?;
    file.sync_all()?;
    Ok(Torn { records: records.max(1), bytes: bytes - whole })
}
