// An OpenID provider for the end-to-end tests: `oidc-provider` itself, with tokens for machines (RFC 6749 section 4.4)
// that are JWTs for a resource (RFC 9068, RFC 8707). Usage: node provider.mjs MODULES SETTINGS, where SETTINGS is a file
// of JSON. Signs by the first of its `keys`; keys that were made before are kept, as a provider does that rolls over.
import { generateKeyPairSync } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, settingsFile] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(join(modules, 'oidc-provider/lib/index.js')));
const { issuer, port, keys, clients } = JSON.parse(readFileSync(settingsFile));
const directory = dirname(settingsFile);

function key(kid) {
  const file = join(directory, `signing-${kid}.json`);
  if (!existsSync(file)) {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const jwk = { ...privateKey.export({ format: 'jwk' }), kid, use: 'sig', alg: 'ES256' };
    writeFileSync(file, JSON.stringify(jwk));
  }
  return JSON.parse(readFileSync(file));
}

const provider = new Provider(issuer, {
  jwks: { keys: keys.map(key) },
  clients: clients.map(({ id, secret }) => ({
    client_id: id,
    client_secret: secret,
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
  })),
  ttl: { ClientCredentials: 300 },
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => 'urn:clawgress',
      getResourceServerInfo: (_, resource) => ({
        scope: '',
        audience: resource,
        accessTokenTTL: 300,
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'ES256' } },
      }),
    },
  },
});
const tls = { cert: readFileSync(join(directory, 'tls.pem')), key: readFileSync(join(directory, 'tls.key')) };
createServer(tls, provider.callback()).listen(port, '127.0.0.1');
