// Loaded into newman before all else: the names in ALIASES are this machine's, as with a line in its hosts file.
'use strict';

const dns = require('node:dns');

const names = new Set((process.env.ALIASES || '').split(','));
const { lookup } = dns;

dns.lookup = (name, ...others) => lookup(names.has(name) ? '127.0.0.1' : name, ...others);
