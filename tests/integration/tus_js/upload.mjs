// Uploads a file with tus-js-client, as its argument says, one JSON object:
//   file, endpoint   what, and where to
//   options          of tus.Upload, such as chunkSize or parallelUploads
//   storage          a file that remembers the upload's address: a later run goes on with it
// Prints one JSON object: url, job (of Framebox-Job), requests (how many of each method).
import fs from 'node:fs'
import * as tus from 'tus-js-client'

const order = JSON.parse(process.argv[2])
const requests = {}
let job = null

const upload = new tus.Upload(fs.createReadStream(order.file), {
  endpoint: order.endpoint,
  retryDelays: [0, 50, 100, 200, 400, 800, 1600, 3200],
  urlStorage: order.storage ? new tus.FileUrlStorage(order.storage) : undefined,
  storeFingerprintForResuming: Boolean(order.storage),
  ...order.options,
  onBeforeRequest(request) {
    requests[request.getMethod()] = (requests[request.getMethod()] ?? 0) + 1
  },
  onAfterResponse(_request, response) {
    job = response.getHeader('Framebox-Job') ?? job
  },
  onError(error) {
    process.stderr.write(`${error}\n`)
    process.exitCode = 1
  },
  onSuccess() {
    process.stdout.write(JSON.stringify({ url: upload.url, job, requests }))
  },
})

if (order.storage) {
  const earlier = await upload.findPreviousUploads()
  if (earlier.length > 0) upload.resumeFromPreviousUpload(earlier[0])
}
upload.start()
