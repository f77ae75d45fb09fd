if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super()
    const frame = document.createElement("iframe")
    const inner = this.inner = new Promise(ready => { frame.onload = () => {
      frame.onload = null
      const self = frame.contentWindow, script = frame.contentDocument.createElement("script")
      self.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      script.onload = () => ready(self)
      script.src = url
      frame.contentDocument.body.append(script)
    } })
    frame.hidden = true
    document.body.append(frame)
  }
  postMessage(data) { this.inner.then(self => self.dispatchEvent(new self.MessageEvent("message", { data }))) }
  terminate() {}
}
