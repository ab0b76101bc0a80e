//! Data in other clothes: runs of base64, base32, hexadecimal and percent-encoded bytes in text, what links and names carry,
//! and what many requests carry in small pieces.
//!
//! What streams is looked at by automata that hold bounded blocks and say the same in any segmentation; what has a short end
//! (a target, a field of a head, a name) is looked at whole. Must never say that a text is harmless: it tells what it sees,
//! and what it takes for an image or a digest is not looked into.

pub mod carried;
pub mod entropy;
pub mod key;
pub mod link;
pub mod run;
pub mod split;

pub use carried::{Carried, header, host, target};
pub use link::Links;
pub use run::{Code, Run, Runs};
pub use split::{Piece, Window};
