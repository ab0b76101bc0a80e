//! Arguments held against a tool's `inputSchema`: the keywords that tools use, in bounded steps.
//!
//! What a schema asks that is not understood here (patterns, formats, references elsewhere) is told as unchecked, never taken
//! for met. Fetches nothing, and runs no regular expression of a server.

use super::Value;

/// Most steps: a value held against a schema is one.
pub const STEPS_MAX: u32 = 50_000;
/// Deepest that references and combinations may go.
const DEPTH_MAX: u32 = 64;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Validity {
    /// All that the schema asks holds.
    Valid,
    /// Something does not: where, as a JSON pointer, and by which keyword.
    Invalid {
        /// RFC 6901.
        at: String,
        /// The keyword.
        keyword: String,
    },
    /// All that is understood holds; this keyword is not.
    Unchecked {
        /// The first of them.
        keyword: String,
    },
}

/// Holds arguments against a schema.
#[must_use]
pub fn validate(schema: &Value, arguments: &Value) -> Validity {
    let mut check = Check { root: schema, steps: 0, unchecked: None };
    match check.value(schema, arguments, "", 0) {
        Ok(()) => check.unchecked.map_or(Validity::Valid, |keyword| Validity::Unchecked { keyword }),
        Err((at, keyword)) => Validity::Invalid { at, keyword },
    }
}

struct Check<'a> {
    root: &'a Value,
    steps: u32,
    unchecked: Option<String>,
}

type Failed = (String, String);

/// Keywords that ask for nothing.
const NOTES: [&str; 13] = [
    "$schema",
    "$id",
    "$defs",
    "definitions",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$anchor",
];

impl<'a> Check<'a> {
    fn value(&mut self, schema: &'a Value, value: &Value, at: &str, depth: u32) -> Result<(), Failed> {
        self.steps += 1;
        if self.steps > STEPS_MAX || depth > DEPTH_MAX {
            return self.skip("a schema of this size");
        }
        match schema {
            Value::Bool(true) => return Ok(()),
            Value::Object(_) => {}
            Value::Bool(false) => return Err((at.to_owned(), "false".to_owned())),
            _ => return self.skip("a schema that is none"),
        }
        for (keyword, asked) in schema.members() {
            let holds = match &**keyword {
                "type" => self.kind(asked, value)?,
                "enum" => is_one_of(asked.items(), value),
                "const" => is_one_of(std::slice::from_ref(asked), value),
                "properties" | "required" | "additionalProperties" | "minProperties" | "maxProperties" => {
                    self.object(keyword, schema, asked, value, (at, depth))?
                }
                "items" | "minItems" | "maxItems" => self.array(keyword, asked, value, (at, depth))?,
                "minLength" | "maxLength" | "minimum" | "maximum" | "exclusiveMinimum"
                | "exclusiveMaximum" => self.bound(keyword, asked, value)?,
                "allOf" | "anyOf" | "oneOf" | "not" => self.combined(keyword, asked, value, (at, depth))?,
                "$ref" => match self.reference(asked) {
                    Some(schema) => {
                        self.value(schema, value, at, depth + 1)?;
                        true
                    }
                    None => {
                        self.skip("$ref")?;
                        true
                    }
                },
                note if NOTES.contains(&note) => true,
                other => {
                    self.skip(other)?;
                    true
                }
            };
            if !holds {
                return Err((at.to_owned(), keyword.clone()));
            }
        }
        Ok(())
    }

    /// A member, which costs as many steps as it may take to find it. Where there are none left, nothing is known.
    fn found<'b>(&mut self, object: &'b Value, name: &str) -> Result<Option<&'b Value>, Failed> {
        const PER_STEP: usize = 32;
        let cost = 1 + object.members().len() / PER_STEP;
        self.steps = self.steps.saturating_add(u32::try_from(cost).unwrap_or(u32::MAX));
        if self.steps > STEPS_MAX {
            // Refused, not skipped: a server that means it well has no schema of this size.
            return Err((String::new(), "a schema of this size".to_owned()));
        }
        Ok(object.member(name))
    }

    /// Notes what is not understood.
    fn skip(&mut self, keyword: &str) -> Result<(), Failed> {
        if self.unchecked.is_none() {
            self.unchecked = Some(keyword.chars().take(64).collect());
        }
        Ok(())
    }

    fn kind(&mut self, asked: &Value, value: &Value) -> Result<bool, Failed> {
        let of = |name: &str| match (name, value) {
            ("null", Value::Null)
            | ("boolean", Value::Bool(_))
            | ("number", Value::Number(_))
            | ("string", Value::Text(_))
            | ("array", Value::Array(_))
            | ("object", Value::Object(_)) => true,
            ("integer", Value::Number(number)) => number.parse::<f64>().is_ok_and(|n| n.fract() == 0.0),
            _ => false,
        };
        Ok(match asked {
            Value::Text(name) => of(name),
            Value::Array(all) => all.iter().filter_map(Value::text).any(of),
            _ => {
                self.skip("type")?;
                true
            }
        })
    }

    fn object(
        &mut self,
        keyword: &str,
        schema: &'a Value,
        asked: &'a Value,
        value: &Value,
        (at, depth): (&str, u32),
    ) -> Result<bool, Failed> {
        let Value::Object(members) = value else { return Ok(true) };
        match keyword {
            "required" => {
                for name in asked.items().iter().filter_map(Value::text) {
                    if self.found(value, name)?.is_none() {
                        return Err((pointer(at, name), keyword.to_owned()));
                    }
                }
            }
            "properties" => {
                for (name, schema) in asked.members() {
                    if let Some(value) = self.found(value, name)? {
                        self.value(schema, value, &pointer(at, name), depth + 1)?;
                    }
                }
            }
            "additionalProperties" => {
                if schema.member("patternProperties").is_some() {
                    return self.skip("patternProperties").map(|()| true);
                }
                let known = schema.member("properties");
                for (name, value) in members {
                    if let Some(known) = known
                        && self.found(known, name)?.is_some()
                    {
                        continue;
                    }
                    if *asked == Value::Bool(false) {
                        return Err((pointer(at, name), keyword.to_owned()));
                    }
                    self.value(asked, value, &pointer(at, name), depth + 1)?;
                }
            }
            _ => return self.counted(keyword, asked, members.len()),
        }
        Ok(true)
    }

    fn array(
        &mut self,
        keyword: &str,
        asked: &'a Value,
        value: &Value,
        (at, depth): (&str, u32),
    ) -> Result<bool, Failed> {
        let Value::Array(items) = value else { return Ok(true) };
        if keyword != "items" {
            return self.counted(keyword, asked, items.len());
        }
        if matches!(asked, Value::Array(_)) {
            return self.skip("items").map(|()| true);
        }
        for (n, item) in items.iter().enumerate() {
            self.value(asked, item, &pointer(at, &n.to_string()), depth + 1)?;
        }
        Ok(true)
    }

    fn bound(&mut self, keyword: &str, asked: &Value, value: &Value) -> Result<bool, Failed> {
        if let ("minLength" | "maxLength", Value::Text(text)) = (keyword, value) {
            return self.counted(keyword, asked, text.chars().count());
        }
        let (Value::Number(number), Value::Number(bound)) = (value, asked) else { return Ok(true) };
        let (Ok(number), Ok(bound)) = (number.parse::<f64>(), bound.parse::<f64>()) else { return Ok(false) };
        Ok(match keyword {
            "minimum" => number >= bound,
            "maximum" => number <= bound,
            "exclusiveMinimum" => number > bound,
            "exclusiveMaximum" => number < bound,
            _ => true,
        })
    }

    fn counted(&mut self, keyword: &str, asked: &Value, count: usize) -> Result<bool, Failed> {
        let Value::Number(bound) = asked else { return self.skip(keyword).map(|()| true) };
        let Ok(bound) = bound.parse::<usize>() else { return self.skip(keyword).map(|()| true) };
        Ok(if keyword.starts_with("min") { count >= bound } else { count <= bound })
    }

    fn combined(
        &mut self,
        keyword: &str,
        asked: &'a Value,
        value: &Value,
        (at, depth): (&str, u32),
    ) -> Result<bool, Failed> {
        if keyword == "allOf" {
            for schema in asked.items() {
                self.value(schema, value, at, depth + 1)?;
            }
            return Ok(true);
        }
        // What is not understood inside counts for all of it: it could hold or not.
        let mut inner = |schema: &'a Value| {
            let before = self.unchecked.take();
            let holds = self.value(schema, value, at, depth + 1).is_ok();
            let is_sure = self.unchecked.is_none();
            self.unchecked = before.or_else(|| self.unchecked.take());
            (holds, is_sure)
        };
        if keyword == "not" {
            let (holds, is_sure) = inner(asked);
            return Ok(!holds || !is_sure);
        }
        let all: Vec<(bool, bool)> = asked.items().iter().map(inner).collect();
        let holding = all.iter().filter(|(holds, _)| *holds).count();
        let is_sure = all.iter().all(|(_, is_sure)| *is_sure);
        Ok(if keyword == "anyOf" || !is_sure { holding > 0 } else { holding == 1 })
    }

    /// A schema inside this one: `#/$defs/name`.
    fn reference(&self, asked: &Value) -> Option<&'a Value> {
        let path = asked.text()?.strip_prefix('#')?;
        let mut found = self.root;
        for part in path.split('/').skip(1) {
            found = found.member(&part.replace("~1", "/").replace("~0", "~"))?;
        }
        Some(found)
    }
}

/// Whether a value is one of these: numbers by what they are, others by what is written.
fn is_one_of(all: &[Value], value: &Value) -> bool {
    let canonical = value.canonical();
    all.iter().any(|one| match (one, value) {
        (Value::Number(a), Value::Number(b)) => a == b || a.parse::<f64>().ok() == b.parse::<f64>().ok(),
        (one, _) => one.canonical() == canonical,
    })
}

fn pointer(at: &str, name: &str) -> String {
    // Long enough to find it.
    let name: String = name.replace('~', "~0").replace('/', "~1").chars().take(64).collect();
    format!("{at}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schema: &str, value: &str) -> Validity {
        let parse = |text: &str| Value::parse(text.as_bytes()).expect(text);
        validate(&parse(schema), &parse(value))
    }

    #[test]
    fn what_a_schema_asks_has_to_hold() {
        let schema = r##"{"type":"object","required":["path"],"additionalProperties":false,"properties":{
            "path":{"type":"string","minLength":1,"maxLength":5},"mode":{"enum":["r","w"]},"n":{"type":"integer","minimum":1,"exclusiveMaximum":10},
            "tags":{"type":"array","items":{"$ref":"#/$defs/tag"},"maxItems":2},"to":{"anyOf":[{"type":"null"},{"type":"string"}]},
            "one":{"oneOf":[{"type":"integer"},{"type":"number"}]},"no":{"not":{"const":1}},"both":{"allOf":[{"minimum":1},{"maximum":2}]}},
            "$defs":{"tag":{"type":["string","null"]}}}"##;
        let invalid = |value: &str, at: &str, keyword: &str| {
            let want = Validity::Invalid { at: at.to_owned(), keyword: keyword.to_owned() };
            assert_eq!(check(schema, value), want, "{value}");
        };
        for valid in [
            r#"{"path":"a"}"#,
            r#"{"path":"a","mode":"w","n":9.0,"tags":["x",null],"to":null,"one":1.5,"no":2,"both":1}"#,
        ] {
            assert_eq!(check(schema, valid), Validity::Valid, "{valid}");
        }
        invalid("{}", "/path", "required");
        invalid("[]", "", "type");
        invalid(r#"{"path":1}"#, "/path", "type");
        invalid(r#"{"path":""}"#, "/path", "minLength");
        invalid(r#"{"path":"ääääää"}"#, "/path", "maxLength");
        invalid(r#"{"path":"a","x/y":1}"#, "/x~1y", "additionalProperties");
        invalid(r#"{"path":"a","mode":"x"}"#, "/mode", "enum");
        invalid(r#"{"path":"a","n":1.5}"#, "/n", "type");
        invalid(r#"{"path":"a","n":10}"#, "/n", "exclusiveMaximum");
        invalid(r#"{"path":"a","tags":["x",1]}"#, "/tags/1", "type");
        invalid(r#"{"path":"a","tags":["x","x","x"]}"#, "/tags", "maxItems");
        invalid(r#"{"path":"a","to":1}"#, "/to", "anyOf");
        invalid(r#"{"path":"a","one":1}"#, "/one", "oneOf");
        invalid(r#"{"path":"a","no":1.0}"#, "/no", "not");
        invalid(r#"{"path":"a","both":3}"#, "/both", "maximum");
    }

    #[test]
    fn what_is_not_understood_is_told() {
        let unchecked = |keyword: &str| Validity::Unchecked { keyword: keyword.to_owned() };
        assert_eq!(check(r#"{"pattern":"a+"}"#, "\"b\""), unchecked("pattern"));
        assert_eq!(check(r#"{"$ref":"https://evil.test/schema"}"#, "1"), unchecked("$ref"));
        assert_eq!(check(r##"{"$ref":"#"}"##, "1"), unchecked("a schema of this size"));
        assert_eq!(check(r#"{"anyOf":[{"format":"x"},{"type":"null"}]}"#, "1"), unchecked("format"));
        assert_eq!(check(r#"{"not":{"format":"x"}}"#, "1"), unchecked("format"));
        // Each reference refers twice: bounded, whatever it would come to.
        let bomb =
            r##"{"$ref":"#/$defs/a","$defs":{"a":{"allOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/a"}]}}}"##;
        assert_eq!(check(bomb, "1"), unchecked("a schema of this size"));
    }
}
