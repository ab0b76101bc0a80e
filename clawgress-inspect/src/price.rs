//! What models cost: a table by provider, model and date, and what a call's tokens come to.
//!
//! The table is data, which an operator's own rows stand before. What is not in it is unpriced, which is no price: nothing here
//! ever answers 0 for a call of a model that is not known. Must never read a clock: who asks says the day.

use std::collections::HashMap;
use std::sync::Arc;

use crate::llm::answer::Usage;

/// The table that comes with the program: made by `cargo xtask prices`.
pub const BUILT_IN: &str = include_str!("price/table.tsv");
/// Most rows.
pub const ROWS_MAX: usize = 20_000;
/// Columns of a row, and of one that has prices for sound.
const COLUMNS: usize = 11;
const COLUMNS_OF_SOUND: usize = 14;
/// Dearest price that a row may say, 10⁻¹² USD: 1,000 USD for a token, or a request.
const PRICE_MAX: u64 = 1_000_000_000_000_000;

/// Why a table can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// Of a line.
    #[error("line {line}: {why}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// More than [`ROWS_MAX`].
    #[error("more than {ROWS_MAX} rows")]
    TooMany,
}

/// A day, as its digits say: 20261126.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(u32);

/// One row: prices from a day on, above a number of input tokens; in 10⁻¹² USD, for a token or a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    from: Day,
    above: u64,
    input: Option<u64>,
    cached: Option<u64>,
    cache_written: Option<u64>,
    output: Option<u64>,
    reasoning: Option<u64>,
    request: Option<u64>,
    /// Of sound: what is put in, that of it which a cache had, and what comes out.
    sound: [Option<u64>; 3],
    source: Arc<str>,
}

/// What a call costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cost {
    /// So much, by the row of this source.
    Priced {
        /// 10⁻⁹ USD, rounded up.
        nanodollars: u64,
        /// Where the row is from.
        source: Arc<str>,
    },
    /// Nobody knows.
    Unpriced,
}

/// A table.
#[derive(Clone, Debug, Default)]
pub struct Prices {
    providers: HashMap<String, Vec<Model>>,
}

/// Rows of one model.
#[derive(Clone, Debug)]
struct Model {
    spelled: String,
    names: Vec<Vec<Name>>,
    rows: Vec<Price>,
}

/// What a name has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Is(String),
    Begins(String),
    Has(String),
    Ends(String),
}

// === impl Day ===

impl Day {
    /// The day before all others.
    pub const EVER: Day = Day(0);

    /// A day of this year, month and day of the month, as far as they can be some.
    #[must_use]
    pub fn new(year: u32, month: u32, day: u32) -> Option<Day> {
        let is = (1..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
        is.then(|| Day(year * 10_000 + month * 100 + day))
    }

    /// `2026-11-26`.
    fn parse(text: &str) -> Option<Day> {
        let mut parts = text.split('-');
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        let is_sound = text.len() == 10 && year.len() == 4 && month.len() == 2 && parts.next().is_none();
        let number =
            |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        if is_sound { Day::new(number(year)?, number(month)?, number(day)?) } else { None }
    }
}

// === impl Prices ===

impl Prices {
    /// Reads a table: tab-separated columns as the built-in one has them; `#` begins a comment.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(text: &str) -> Result<Prices, PriceError> {
        let (mut prices, mut rows) = (Prices::default(), 0);
        let lines = text.lines().enumerate();
        for (n, line) in lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#')) {
            rows += 1;
            if rows > ROWS_MAX {
                return Err(PriceError::TooMany);
            }
            prices.row(line).map_err(|why| PriceError::Line { line: n + 1, why })?;
        }
        Ok(prices)
    }

    /// This table, with another's models before its own: of a model that both have, only the other's rows count.
    #[must_use]
    pub fn overridden_by(mut self, other: Prices) -> Prices {
        for (provider, mut models) in other.providers {
            let all = self.providers.entry(provider).or_default();
            models.append(all);
            *all = models;
        }
        self
    }

    /// What a price is on a day, for a call of so many input tokens.
    #[must_use]
    pub fn find(&self, provider: &str, model: &str, day: Day, input: u64) -> Option<&Price> {
        let model = model.to_ascii_lowercase();
        let models = self.providers.get(&provider.to_ascii_lowercase())?;
        let rows = &models.iter().find(|known| known.is_named(&model))?.rows;
        // The latest that has begun; of its tiers, the highest that is reached.
        let from = rows.iter().map(|row| row.from).filter(|from| *from <= day).max()?;
        let tiers = rows.iter().filter(|row| row.from == from && (row.above == 0 || input > row.above));
        tiers.max_by_key(|row| row.above)
    }

    /// What a call costs.
    #[must_use]
    pub fn cost(&self, provider: &str, model: &str, day: Day, usage: &Usage) -> Cost {
        let price = self.find(provider, model, day, usage.input);
        price.and_then(|price| price.of(usage)).unwrap_or(Cost::Unpriced)
    }

    fn row(&mut self, line: &str) -> Result<(), String> {
        let mut cells: Vec<&str> = line.split('\t').map(str::trim).collect();
        let found = cells.len();
        let sound = match found {
            COLUMNS_OF_SOUND => cells.drain(COLUMNS - 1..COLUMNS_OF_SOUND - 1).collect(),
            _ => vec!["-"; 3],
        };
        let Ok(
            [provider, names, from, above, input, cached, cache_written, output, reasoning, request, source],
        ) = <[&str; COLUMNS]>::try_from(cells)
        else {
            return Err(format!(
                "it has {found} columns; use {COLUMNS}, or {COLUMNS_OF_SOUND} with prices for sound, with a tab between two"
            ));
        };
        let price = |cell: &str| match cell {
            "-" => Ok(None),
            cell => match cell.parse::<u64>() {
                Ok(price) if price <= PRICE_MAX => Ok(Some(price)),
                _ => Err(format!("`{cell}` is no price; use 10^-12 USD up to {PRICE_MAX}, or `-`")),
            },
        };
        let from = match from {
            "-" => Day::EVER,
            from => Day::parse(from)
                .ok_or_else(|| format!("`{from}` is no day; use one like `2026-11-26`, or `-`"))?,
        };
        let above = above.parse().map_err(|_| format!("`{above}` is no number of tokens"))?;
        let sound: Vec<_> = sound.into_iter().map(price).collect::<Result<_, _>>()?;
        let row = Price {
            from,
            above,
            input: price(input)?,
            cached: price(cached)?,
            cache_written: price(cache_written)?,
            output: price(output)?,
            reasoning: price(reasoning)?,
            request: price(request)?,
            sound: sound.try_into().unwrap_or_default(),
            source: source.into(),
        };
        let models = self.providers.entry(provider.to_ascii_lowercase()).or_default();
        match models.last_mut() {
            // Rows of one model follow one another.
            Some(model) if model.spelled == names => model.rows.push(row),
            _ => {
                let spelled = names.to_owned();
                models.push(Model { names: parse_names(names)?, spelled, rows: vec![row] });
            }
        }
        Ok(())
    }
}

fn parse_names(names: &str) -> Result<Vec<Vec<Name>>, String> {
    let one = |text: &str| {
        let mut rest = text.chars();
        let mark = rest.next();
        let name = rest.as_str().to_ascii_lowercase();
        match (mark, name.is_empty()) {
            (Some('='), false) => Ok(Name::Is(name)),
            (Some('^'), false) => Ok(Name::Begins(name)),
            (Some('~'), false) => Ok(Name::Has(name)),
            (Some('$'), false) => Ok(Name::Ends(name)),
            _ => Err(format!(
                "`{text}` is no name of models; put `=`, `^` (begins), `~` (has) or `$` (ends) before it"
            )),
        }
    };
    let all: Vec<Vec<Name>> = names
        .split_ascii_whitespace()
        .map(|all| all.split('&').map(one).collect())
        .collect::<Result<_, _>>()?;
    if all.is_empty() { Err("it names no models".to_owned()) } else { Ok(all) }
}

// === impl Model ===

impl Model {
    fn is_named(&self, model: &str) -> bool {
        let is = |name: &Name| match name {
            Name::Is(name) => model == name,
            Name::Begins(name) => model.starts_with(&**name),
            Name::Has(name) => model.contains(&**name),
            Name::Ends(name) => model.ends_with(&**name),
        };
        self.names.iter().any(|all| all.iter().all(is))
    }
}

// === impl Price ===

impl Price {
    /// Where it is from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What these tokens cost; `None` if it has no price for some of them.
    fn of(&self, usage: &Usage) -> Option<Cost> {
        let [sound, cached_sound, spoken] = self.sound;
        // What is sound is within what is put in, cached, or comes out.
        let heard = usage.input_audio.min(usage.input);
        let (cached, heard_again) =
            (usage.cached.min(usage.input), usage.cached_audio.min(usage.cached).min(heard));
        let said = usage.output_audio.min(usage.output);
        let fresh = heard - heard_again;
        let plain =
            usage.input.saturating_sub(cached).saturating_sub(usage.cache_written).saturating_sub(fresh);
        let answer = usage.output.saturating_sub(usage.reasoning).saturating_sub(said);
        let parts = [
            (plain, self.input),
            // Where nothing cheaper is said, it costs what it would without a cache.
            (cached - heard_again, self.cached.or(self.input)),
            (usage.cache_written.min(usage.input), self.cache_written.or(self.input)),
            (answer, self.output),
            (usage.reasoning.min(usage.output), self.reasoning.or(self.output)),
            // Sound costs several times what text does: where its price is not known, it has none.
            (fresh, sound),
            (heard_again, cached_sound.or(sound)),
            (said, spoken),
            (1, self.request.or(Some(0))),
        ];
        let mut trillionths: u128 = 0;
        for (count, price) in parts.into_iter().filter(|(count, _)| *count > 0) {
            trillionths += u128::from(count) * u128::from(price?);
        }
        let nanodollars = u64::try_from(trillionths.div_ceil(1000)).unwrap_or(u64::MAX);
        Some(Cost::Priced { nanodollars, source: Arc::clone(&self.source) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(input: u64, cached: u64, output: u64, reasoning: u64) -> Usage {
        Usage { input, cached, output, reasoning, ..Usage::default() }
    }

    fn nanodollars(cost: Cost) -> Option<u64> {
        match cost {
            Cost::Priced { nanodollars, .. } => Some(nanodollars),
            Cost::Unpriced => None,
        }
    }

    #[test]
    fn the_built_in_table_knows_what_is_in_use() {
        let prices = Prices::parse(BUILT_IN).expect("the table that comes with the program");
        let day = Day::new(2026, 11, 26).expect("a day");
        for (provider, model) in [
            ("openai", "gpt-4o-mini"),
            ("openai", "gpt-5-mini-2025-08-07"),
            ("anthropic", "claude-sonnet-4-5-20250929"),
            ("gemini", "gemini-2.5-flash"),
            ("vertex", "gemini-2.5-flash"),
            ("bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
            ("mistral", "mistral-large-latest"),
            ("cohere", "command-r-plus"),
            ("openrouter", "openai/gpt-4o-mini"),
        ] {
            let cost = nanodollars(prices.cost(provider, model, day, &usage(1000, 0, 1000, 0)));
            assert!(cost.is_some_and(|cost| cost > 0), "{provider} {model}");
        }
        // 0.15 USD for a million of input, 0.075 if cached, 0.60 of output: since it came out.
        let mini = prices.cost("OpenAI", "GPT-4o-mini", day, &usage(1_000_000, 400_000, 500_000, 100_000));
        assert_eq!(nanodollars(mini), Some(90_000_000 + 30_000_000 + 300_000_000));
        for (provider, model) in [("openai", "no-such-model"), ("no-such-provider", "gpt-4o-mini"), ("", "")]
        {
            assert_eq!(prices.cost(provider, model, day, &usage(1, 0, 1, 0)), Cost::Unpriced);
        }
    }

    const TABLE: &str = "# comment\n\
        p\t=m ^mm&$x\t-\t0\t1000\t100\t-\t2000\t-\t-\told\n\
        p\t=m ^mm&$x\t2026-01-01\t0\t2000\t-\t2500\t4000\t8000\t7000\tnew\n\
        p\t=m ^mm&$x\t2026-01-01\t100\t3000\t-\t-\t6000\t-\t-\tlong\n\
        p\t~embed\t-\t0\t10\t-\t-\t-\t-\t-\te\n";

    #[test]
    fn days_tiers_and_kinds_of_tokens_count() {
        let prices = Prices::parse(TABLE).expect("a table");
        let (before, after) = (Day::new(2025, 12, 31).expect("a day"), Day::new(2026, 1, 1).expect("a day"));
        let of = |model, day, usage: Usage| nanodollars(prices.cost("p", model, day, &usage));
        assert_eq!(of("m", before, usage(100, 50, 10, 5)), Some(50 + 5 + 20));
        // Cached as input, reasoning by itself, and the request.
        assert_eq!(of("m", after, usage(100, 50, 10, 5)), Some(200 + 20 + 40 + 7));
        assert_eq!(of("m", after, usage(101, 0, 10, 5)), Some(303 + 60));
        assert_eq!(of("m", after, Usage { cache_written: 10, ..usage(10, 0, 0, 0) }), Some(25 + 7));
        assert_eq!(
            (of("mmax", after, usage(1, 0, 0, 0)), of("mma", after, usage(1, 0, 0, 0))),
            (Some(9), None)
        );
        // What is not priced is not free.
        assert_eq!(of("text-embed", after, usage(100, 0, 0, 0)), Some(1));
        assert_eq!(of("text-embed", after, usage(100, 0, 1, 0)), None);
        // More of a part than of the whole is no more than the whole.
        assert_eq!(of("m", before, usage(10, 99, 10, 99)), Some(1 + 20));
        assert_eq!(of("m", before, usage(u64::MAX, 0, u64::MAX, 0)), Some(u64::MAX));
    }

    #[test]
    fn sound_has_prices_of_its_own_or_none() {
        let table = "p\t=m\t-\t0\t1000\t100\t-\t2000\t-\t-\t40000\t400\t80000\ts\n\
            p\t=n\t-\t0\t1000\t100\t-\t2000\t-\t-\t40000\t-\t-\ts\n\
            p\t=o\t-\t0\t1000\t100\t-\t2000\t-\t-\ts\n";
        let prices = Prices::parse(table).expect("a table");
        let of = |model, usage: Usage| nanodollars(prices.cost("p", model, Day::EVER, &usage));
        let text = usage(100, 40, 10, 0);
        let sound = Usage { input_audio: 50, cached_audio: 30, output_audio: 6, ..text.clone() };
        // 40 of text and 20 of sound; 10 and 30 of them cached; 4 and 6 that come out.
        assert_eq!(of("m", sound.clone()), Some(40 + 800 + 1 + 12 + 8 + 480));
        assert_eq!(of("m", text.clone()), Some(60 + 4 + 20));
        // Cached as it is without a cache; what comes out has no price, and so has all of it.
        assert_eq!(of("n", sound.clone()), None);
        let heard = Usage { output_audio: 0, ..sound.clone() };
        assert_eq!(of("n", heard.clone()), Some(40 + 800 + 1 + 1200 + 20));
        assert_eq!((of("o", heard), of("o", text)), (None, Some(84)));
        // More of a part than of the whole is no more than the whole.
        let odd = Usage { input_audio: 99, cached_audio: 99, output_audio: 99, ..usage(10, 5, 10, 0) };
        assert_eq!(of("m", odd), Some(200 + 2 + 800));
    }

    #[test]
    fn the_built_in_table_knows_what_sound_costs() {
        let prices = Prices::parse(BUILT_IN).expect("the table that comes with the program");
        let day = Day::new(2026, 11, 26).expect("a day");
        let sound = Usage { input_audio: 1000, output_audio: 1000, ..usage(1000, 0, 1000, 0) };
        let text = usage(1000, 0, 1000, 0);
        for (provider, model) in
            [("openai", "gpt-audio"), ("openai", "gpt-realtime"), ("openai", "gpt-4o-mini-realtime-preview")]
        {
            let [sound, text] =
                [&sound, &text].map(|usage| nanodollars(prices.cost(provider, model, day, usage)));
            assert!(sound > text && text > Some(0), "{provider} {model}: {sound:?} {text:?}");
        }
        let heard = Usage { input_audio: 1000, ..text };
        assert!(nanodollars(prices.cost("gemini", "gemini-2.5-flash", day, &heard)) > Some(0));
        assert_eq!(prices.cost("openai", "gpt-5-mini", day, &sound), Cost::Unpriced);
    }

    #[test]
    fn the_operator_s_rows_stand_before() {
        let own = Prices::parse("p\t^m\t2026-06-01\t0\t1\t-\t-\t1\t-\t-\town\n").expect("a table");
        let prices = Prices::parse(TABLE).expect("a table").overridden_by(own);
        let day = |month| Day::new(2026, month, 1).expect("a day");
        let source = |model, month| prices.find("p", model, day(month), 1).map(Price::source);
        assert_eq!((source("m", 7), source("embed", 7)), (Some("own"), Some("e")));
        // Before that, nobody knows: what the operator replaces is not what it was.
        assert_eq!(source("m", 2), None);
    }

    #[test]
    fn tables_that_can_not_be_used_say_why() {
        for (row, want) in [
            (
                "p\t=m",
                "line 1: it has 2 columns; use 11, or 14 with prices for sound, with a tab between two",
            ),
            (
                "p\tm\t-\t0\t1\t-\t-\t1\t-\t-\ts",
                "line 1: `m` is no name of models; put `=`, `^` (begins), `~` (has) or `$` (ends) before it",
            ),
            (
                "p\t=m\t2026-13-01\t0\t1\t-\t-\t1\t-\t-\ts",
                "line 1: `2026-13-01` is no day; use one like `2026-11-26`, or `-`",
            ),
            ("p\t=m\t-\tx\t1\t-\t-\t1\t-\t-\ts", "line 1: `x` is no number of tokens"),
            (
                "p\t=m\t-\t0\t-1\t-\t-\t1\t-\t-\ts",
                "line 1: `-1` is no price; use 10^-12 USD up to 1000000000000000, or `-`",
            ),
            ("p\t\t-\t0\t1\t-\t-\t1\t-\t-\ts", "line 1: it names no models"),
        ] {
            assert_eq!(Prices::parse(row).expect_err(row).to_string(), want);
        }
        assert_eq!(
            Prices::parse(&format!("{TABLE}\nx")).expect_err("x").to_string().split(':').next(),
            Some("line 7")
        );
    }
}
